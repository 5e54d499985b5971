"""Stage 2 in a host trainer: the anchor logits and the objective."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..encoders.fast_forward import FastForward
from ..encoders.image_calls import ImageCalls
from ..encoders.plain_clip import PlainImages
from ..encoders.shared_prefix import leaves
from ..encoders.text_tower import TextTower
from ..errors import UserError
from ..method.anchor_prompts import AnchorPrompts
from ..method.anchors import AnchorTokens
from ..method.metrics import Means, agreement, entropy
from ..method.objective import distillation, to_float32
from ..method.order import in_words
from ..process import distributed
from ..prompts.hooks import PromptHook
from .batch import Batch
from .columns import Columns
from .host_parts import HostParts
from .settings import AnchorOPTConfig
from .stepped_optimizers import SteppedOptimizers

log = logging.getLogger("anchoropt_plugin")

_NO_ANCHORS = (
    "the host gets its prompts without calling its learner, so they carry no anchors: call "
    "prompt_learner(), not another method of it"
)


class AnchorOPT:
    """AnchorOPT in one trainer: settings, position matrix, anchor logits, objective.

    Args:
        settings: checked settings.
        parts: of the host.
        class_names: of this run.
        trained: all parameters that the host trains.

    Attributes:
        settings: checked settings.
        position: the module on the host's prompt learner.
        learner: the host's prompt learner.
        classes: names of the classes of this run.
        sources: a digest of the file of anchors or descriptions; None before a training.
        plain: the host's CLIP as it was loaded.
        tower: of the plain CLIP, for the anchor prompts.
        plain_images: encodes the images of a call of the host's image encoder in the plain CLIP.
        features: the images that the host encodes, and their features in the plain CLIP.
        columns: compares the columns of logits with the classes, at the first step.
        stepped: the optimisers that the host steps.
        means: of the values of this epoch's steps.
        batch: what the present step was given; None between steps.
    """

    def __init__(
        self,
        settings: AnchorOPTConfig,
        parts: HostParts,
        class_names: Sequence[str],
        trained: Iterable[nn.Parameter] = (),
    ) -> None:
        self.settings = settings
        self.position, self.learner = parts.position, parts.learner
        self.stepped = SteppedOptimizers(self.learner, self.position)
        self.classes = list(class_names)
        self.sources: str | None = None
        self.is_in_training = False
        self._told: set[str] = set()
        self.batch: Batch | None = None
        self._label_place: int | None = None
        self.hook = parts.hook
        self._learned = {id(parameter) for parameter in parts.learner.parameters()}
        self.plain = parts.plain(trained)
        self.plain_images = PlainImages(self.plain)
        self.features = ImageCalls(self._plain_features)
        parts.image_encoder.register_forward_hook(self.features, with_kwargs=True)
        self.tower = TextTower(self.plain.clip)
        self.prompts = AnchorPrompts(self.tower, class_names, settings.anchor_len)
        self._host_prompts = parts.prompts
        self._text_encoders = list(parts.text_encoders)
        self.columns = Columns(parts.text_encoders, class_names)
        self.means = Means()
        self._encoded: tuple[tuple[int, int], Tensor] | None = None

    @property
    def has_anchors(self) -> bool:
        """Whether anchors were learned or loaded; until then they are zeros."""
        return self.position.has_anchors

    def set_anchors(self, anchors: AnchorTokens) -> None:
        """Put anchors (K, d) into the learner."""
        distributed.copy_from_main(self.position.anchors.copy_(anchors.values))

    @torch.no_grad()
    def class_features(self) -> Tensor:
        """Return L2-normalised features (C, e) of the anchor prompts in float32; encoded once."""
        anchors = self.position.anchors
        # A tensor's version counts its in-place changes: loading weights is one of them.
        version = anchors._version, self.tower.version()
        if self._encoded is None or self._encoded[0] != version:
            # Cached features must serve in training too, even if a test in inference mode is first.
            with torch.inference_mode(False), torch.no_grad():
                self._encoded = version, self.prompts.encode(anchors)
        return self._encoded[1]

    def compare_again(self) -> None:
        """Let the fast text branch compare itself anew: a host may change what it encodes."""
        for encoder in self._text_encoders:
            if isinstance(encoder.forward, FastForward):
                encoder.forward.compare_again()

    def condition(self) -> None:
        """Give the position matrix the task, if POSITION_TASK conditions it on the task."""
        if self.settings.position_task and self.has_anchors:
            self.position.task.copy_(self.class_features().mean(0))

    def _plain_features(
        self, encoder: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Any
    ) -> Tensor | Callable[[], Tensor]:
        """Return plain features (N, e) of a call of the image encoder, or their computation."""
        if type(self.hook).plain_features is not PromptHook.plain_features:
            return self.hook.plain_features(encoder, args, output)
        return self.plain_images(encoder, args, named, output)

    @torch.no_grad()
    def logits(self, images: Tensor | None = None) -> Tensor:
        """Return l_a (N, C) in float32.

        Args:
            images: plain features (N, e); None takes those of the images first seen.
        """
        images = self.features.value if images is None else images
        if images is None:
            raise UserError(
                "the host's image encoder was not called since the step began, so AnchorOPT has no "
                "image features; a copy of the model (an average of its weights) has an image "
                "encoder of its own"
            )
        with torch.autocast(images.device.type, enabled=False):
            scale = self.tower.clip.logit_scale.exp().float()
            return scale * images @ self.class_features().t()

    def note_labels(self, parsed: Any) -> None:
        """Note the labels in the results of ``parse_batch_train``; the first ones are compared."""
        if self.batch is None:
            return
        if self._label_place is None:
            self._label_place = self.batch.place_of_labels(parsed)
        if self._label_place is not None:
            self.batch.parsed = parsed[self._label_place]

    def is_learned(self, logits: Tensor) -> bool:
        """Whether ``logits`` depend on the prompt learner."""
        return any(id(leaf) in self._learned for leaf in leaves(logits))

    def warn_once(self, message: str, *values: object) -> None:
        """Log a warning, unless one with this message was logged."""
        if message not in self._told:
            self._told.add(message)
            log.warning(message, *values)

    def check_position(self, logits: Tensor) -> None:
        """Raise ``UserError`` if a position matrix that is to be learned does not reach l_n."""
        weights = {id(parameter): parameter for parameter in self.position.parameters()}
        if not self.settings.position_trained or any(id(x) in weights for x in leaves(logits)):
            return
        if not any(parameter.requires_grad for parameter in weights.values()):
            raise UserError(
                "the host freezes the position logits of its prompt learner after build_model, so "
                "that no position matrix is learned: leave parameters with 'anchoropt' in their "
                "name as they are"
            )
        raise UserError(_NO_ANCHORS)

    def forget_prompts(self) -> None:
        """Forget whether the prompts that the text encoder got carried anchors."""
        self._host_prompts.seen.clear()

    def check_prompts(self) -> None:
        """Raise ``UserError`` if only prompts without anchors came since ``forget_prompts``.

        A host may encode further prompts, as of a teacher, that carry none.
        """
        if self._host_prompts.seen == {False}:
            raise UserError(_NO_ANCHORS)

    def loss(
        self,
        cross_entropy: Tensor,
        logits: Tensor,
        images: Tensor | None = None,
        reduction: str = "mean",
    ) -> Tensor:
        """Return the objective of stage 2 for the host's cross-entropy and logits l_n (n, C).

        Args:
            cross_entropy: of the host, after its reduction.
            logits: l_n.
            images: plain features (n, e); None takes those of the images first seen.
            reduction: of the cross-entropy, "mean", "sum" or "none"; the objective has the same.
        """
        settings = self.settings
        loss = settings.prompt_ce_weight * to_float32(cross_entropy)
        if settings.kd_weight:
            anchor_logits = self.logits(images)
            temperature = settings.kd_temperature
            divergence = distillation(logits, anchor_logits, temperature, reduction)
            loss = loss + settings.kd_weight * divergence
            self._add(reduction, len(logits), distillation=divergence)
            self.means.add(agreement=agreement(logits, anchor_logits))
        self._add(reduction, len(logits), cross_entropy=cross_entropy)
        self.is_in_training = True
        return loss

    def _add(self, reduction: str, n: int, **losses: Tensor) -> None:
        """Add the means over ``n`` images of losses to the means of the epoch."""
        if reduction != "mean":
            losses = {name: loss.float().sum() / n for name, loss in losses.items()}
        self.means.add(**losses)

    def order(self) -> str:
        """Return the order of the tokens at test in words."""
        words = in_words(self.position.most_likely(), self.position.n_ctx)
        # With noise at test, the released code's, each test has another order.
        return f"most likely {words}" if self.position.sample_at_eval else words

    def scalars(self) -> dict[str, float]:
        """Return means over the steps of the epoch, and the entropy of the position matrix.

        ``distillation``, and ``agreement`` (the fraction of images to which l_n and l_a give the
        same class), need KD_WEIGHT > 0: without distillation no step computes l_a.
        """
        return {**self.means.take(), "position_entropy": entropy(self.position.relaxed()).item()}

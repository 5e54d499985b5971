"""Stage 2 in a host trainer: the anchor logits, the objective, and the rule at test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..encoders.image_features import FirstFeatures
from ..encoders.shared_prefix import leaves
from ..encoders.text_tower import TextTower
from ..errors import UserError
from ..method.anchors import AnchorPrompts, AnchorTokens
from ..method.metrics import Means, agreement, entropy
from ..method.objective import as_logits, average, distillation, to_float32
from ..method.order import in_words
from ..process import distributed
from .host_parts import HostParts
from .settings import AnchorOPTConfig


class AnchorOPT:
    """AnchorOPT in one trainer: settings, position matrix, anchor logits, objective.

    Attributes:
        settings: checked settings.
        position: the module on the host's prompt learner.
        classes: names of the classes of this run.
        trained_classes: names of the classes that the prompt was trained on; None if unknown.
        tower: of the host's CLIP, for the anchor prompts.
        features: of the images last seen.
        means: of the values of this epoch's steps.
    """

    def __init__(
        self, settings: AnchorOPTConfig, parts: HostParts, class_names: Sequence[str]
    ) -> None:
        self.settings = settings
        self.position = parts.position
        self.classes = list(class_names)
        self.trained_classes: frozenset[str] | None = None
        self.is_in_training = self.is_in_test = False
        self.hook = parts.hook
        self._learned = {id(parameter) for parameter in parts.learner.parameters()}
        self.features = FirstFeatures(self.hook.plain_features)
        parts.image_encoder.register_forward_hook(self.features)
        self.tower = TextTower(parts.clip)
        self.prompts = AnchorPrompts(self.tower, class_names, settings.anchor_len)
        self.means = Means()
        self._encoded: tuple[tuple[int, int], Tensor] | None = None

    @property
    def has_anchors(self) -> bool:
        """Whether anchors were learned or loaded; until then they are zeros."""
        return self.position.has_anchors

    def set_anchors(self, anchors: AnchorTokens) -> None:
        """Put anchors (K, d) into the learner.

        Raises:
            UserError: their shape is another.
        """
        found, wanted = tuple(anchors.values.shape), tuple(self.position.anchors.shape)
        if found != wanted:
            raise UserError(
                f"the anchors in {self.settings.anchor_weights} are {found}, this run needs "
                f"{wanted}: they were learned with another ANCHOR_LEN or on another backbone"
            )
        distributed.copy_from_main(self.position.anchors.copy_(anchors.values))

    @torch.no_grad()
    def _class_features(self) -> Tensor:
        """Return L2-normalised features (C, e) of the anchor prompts in float32; encoded once."""
        anchors = self.position.anchors
        # A tensor's version counts its in-place changes: loading weights is one of them.
        version = anchors._version, self.tower.version()
        if self._encoded is None or self._encoded[0] != version:
            # Cached features must serve in training too, even if a test in inference mode is first.
            with torch.inference_mode(False), torch.no_grad():
                self._encoded = version, self.prompts.encode(anchors)
        return self._encoded[1]

    def condition(self) -> None:
        """Give the position matrix the task, if POSITION_TASK conditions it on the task."""
        if self.settings.position_task and self.has_anchors:
            self.position.task.copy_(self._class_features().mean(0))

    @torch.no_grad()
    def logits(self) -> Tensor:
        """Return l_a (B, C) of the images last seen, in float32."""
        images = self.features.value
        if images is None:
            raise UserError(
                "the host's image encoder was not called since the step began, so AnchorOPT has no "
                "image features; a copy of the model (an average of its weights) has an image "
                "encoder of its own"
            )
        with torch.autocast(images.device.type, enabled=False):
            scale = self.tower.clip.logit_scale.exp().float()
            return scale * images @ self._class_features().t()

    def is_prompt_logits(self, logits: Tensor) -> bool:
        """Whether a cross-entropy of the host takes l_n (B, C) of the images last seen."""
        images = self.features.value
        if images is None or not self.hook.is_prompt_logits(logits, len(images), len(self.classes)):
            return False
        # The logits of a zero-shot head or an image head have the same shape.
        return any(id(leaf) in self._learned for leaf in leaves(logits))

    def loss(self, cross_entropy: Tensor, logits: Tensor) -> Tensor:
        """Return the objective of stage 2 for the host's cross-entropy and logits l_n (B, C)."""
        settings = self.settings
        loss = settings.prompt_ce_weight * to_float32(cross_entropy)
        if settings.kd_weight:
            anchor_logits = self.logits()
            divergence = distillation(logits, anchor_logits, settings.kd_temperature)
            loss = loss + settings.kd_weight * divergence
            self.means.add(distillation=divergence, agreement=agreement(logits, anchor_logits))
        self.means.add(cross_entropy=cross_entropy)
        self.is_in_training = self.features.is_used = True
        return loss

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

    def tested(self, output: Any, subsample: str) -> Any:
        """Return the logits used for evaluation: l_n, the mean of l_n and l_a, or l_a.

        Args:
            output: of the host for the images last seen: l_n (B, C), alone or first of several; any
                other output is returned unchanged.
            subsample: see ``averages``.
        """
        logits, *others = output if isinstance(output, (tuple, list)) else (output,)
        images = self.features.value
        if images is not None and getattr(logits, "shape", None) != (
            len(images),
            len(self.classes),
        ):
            return output
        self.is_in_test = self.features.is_used = True
        if self.settings.ensemble == "anchors":
            logits = self.logits()
        elif self.averages(subsample):
            logits = average(as_logits(logits), self.logits())
        return (logits, *others) if others else logits

    def averages(self, subsample: str) -> bool:
        """Whether test logits are averaged with l_a: "auto" does so if a class was not trained.

        Args:
            subsample: ``DATASET.SUBSAMPLE_CLASSES``, used only if no training classes are recorded.
        """
        if self.settings.ensemble != "auto":
            return self.settings.ensemble == "always"
        if self.trained_classes is None:
            return subsample != "base"
        return not self.trained_classes.issuperset(self.classes)

"""Which of a host's cross-entropies is the prompt's own, where AnchorOPT puts its objective."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor

from ..encoders.image_calls import ImageCall
from ..errors import UserError
from ..method.objective import CrossEntropy, to_float32
from ..prompts.hooks import PromptHook
from .batch import Batch
from .stage_two import AnchorOPT

_OTHER_IMAGES = "of images that are not the loader's"
_OTHER_TARGETS = "whose targets are not the labels of the batch"


class StepLosses:
    """The cross-entropies of one step of a host.

    The prompt's own one takes logits (images, classes) that depend on the prompt learner, of images
    that the image encoder got, and the labels of these images. Its value is replaced by AnchorOPT's
    objective. All others stay the host's, unless its hook counts them to the prompt's loss.

    Args:
        run: AnchorOPT in the host.
        on_loss: called with each loss of the objective.
    """

    def __init__(
        self, run: AnchorOPT, on_loss: Callable[[Tensor], Any] = lambda loss: None
    ) -> None:
        self.run = run
        self.on_loss = on_loss
        self.batch = run.batch or Batch([])
        self._is_replaced = self._are_several = self._are_of_images = False
        self._is_trained = self._is_learner_trained = False
        self._others: list[str] = []

    def __call__(self, seen: CrossEntropy) -> Tensor:
        """Return the loss that replaces a cross-entropy of the host."""
        run, logits = self.run, seen.logits
        why = self._why_not(seen)
        found = None if why else self._images_of(logits)
        is_first = not run.is_in_training
        is_compared = is_first and bool(run.settings.kd_weight)  # once, as this waits for a GPU
        if is_compared and found and any(map(found[0].reorders, self.batch.images)):
            why, found = "of the images of the batch in another order", None
        if found is not None:
            call, rows = found
            call.used.append(rows)
            self._is_replaced, self._are_of_images = True, seen.reduction == "none"
            if is_first:
                run.check_position(logits)
            images = call.features[rows.start : rows.stop]
            loss = run.loss(seen.value, logits, images, seen.reduction)
            self.on_loss(loss)
            loss.register_hook(self._note_trained)
            return loss
        if run.hook.is_of_prompt_loss(logits, len(logits), len(run.classes)):
            return run.settings.prompt_ce_weight * to_float32(seen.value)
        self._are_several = self._are_several or why in ("", _OTHER_TARGETS)
        self._others.append(f"{tuple(logits.shape)} {why or _OTHER_IMAGES}")
        return seen.value

    @contextmanager
    def watched(self) -> Iterator[None]:
        """In this context, note whether gradients of the step reach the prompt learner."""
        with ExitStack() as hooks:
            for parameter in self.run.learner.parameters():
                if parameter.requires_grad:
                    # Not a gradient hook: the fast text branch compares gradients on its own.
                    hook = parameter.register_post_accumulate_grad_hook(self._note_learner_trained)
                    hooks.callback(hook.remove)
            yield

    def _note_trained(self, gradient: Tensor) -> None:
        self._is_trained = True

    def _note_learner_trained(self, parameter: Tensor) -> None:
        self._is_learner_trained = True

    def _why_not(self, seen: CrossEntropy) -> str:
        """Return why a cross-entropy cannot be the prompt's, or an empty string."""
        run, hook, logits = self.run, self.run.hook, seen.logits
        if not (logits.dim() and hook.is_prompt_logits(logits, len(logits), len(run.classes))):
            return f"and not (images, {len(run.classes)})"
        # The logits of a zero-shot head or an image head have the same shape.
        if not (seen.value.requires_grad and run.is_learned(logits)):
            return "that do not depend on the prompt learner"
        numbers = {len(call) for call in run.features.calls}
        if not any(n in numbers for n, _ in _places(logits)):
            return "of images that its image encoder did not get in one call"
        if type(hook).is_prompt_logits is not PromptHook.is_prompt_logits:
            return ""  # a hook of the host's own knows better
        if not self.batch.is_labelled(seen.targets):
            return _OTHER_TARGETS
        return run.columns.strange(logits)

    def _images_of(self, logits: Tensor) -> tuple[ImageCall, range] | None:
        """Return the call of the image encoder that logits belong to, and the rows of its images.

        Logits may be consecutive rows of the logits of all images. There is none if these images
        have met the objective.
        """
        for n, rows in _places(logits):
            call = self.run.features.of(n, rows, self.batch.images, logits)
            if call is not None:
                return call, rows
        return None

    def check(self, host: str) -> None:
        """Check the step; warn once of several cross-entropies of the prompt.

        Raises:
            UserError: it had none, or trained the learner with another loss alone.
        """
        if self._are_several:
            self.run.warn_once(
                "%s computes several cross-entropies of its prompt's logits, for the same images, "
                "for images that the loader did not give, or with other labels (as mixup): "
                "AnchorOPT's objective, with its distillation, replaces the first one with the "
                "labels of the batch, the others stay; a factor of the host before the first one "
                "is before the distillation, too",
                host,
            )
        if self._are_of_images and self.run.settings.kd_weight:
            self.run.warn_once(
                "%s takes its cross-entropy with reduction='none': each value is now AnchorOPT's "
                "objective of an image, distillation included; weights that are made from these "
                "values (focal loss, small-loss selection) see that",
                host,
            )
        if self._is_learner_trained and self._is_replaced and not self._is_trained:
            raise UserError(
                f"{host} does not train the first cross-entropy of its prompt's logits, where "
                "AnchorOPT puts its objective, but another loss: compute what is only logged, or "
                "only weighs a loss, under torch.no_grad(), and what is trained with "
                "F.cross_entropy"
            )
        if self._is_replaced:
            return
        n_classes = len(self.run.classes)
        others = "; ".join(dict.fromkeys(self._others)) or "none at all"
        raise UserError(
            f"{host} computes no F.cross_entropy over the logits of its {n_classes} classes, where "
            "AnchorOPT puts its objective: compute the loss as F.cross_entropy(output, label) with "
            f"output (images, classes) and the labels of the batch; seen over logits: {others}"
        )


def _places(logits: Tensor) -> Iterator[tuple[int, range]]:
    """Yield the numbers of images of which ``logits`` may be rows, and these rows."""
    yield len(logits), range(len(logits))
    whole = logits._base
    if whole is not None and whole.dim() == 2 and whole.stride() == logits.stride():
        offset = int(logits.storage_offset() - whole.storage_offset())
        start, column = divmod(offset, whole.stride(0))
        if not column and whole.shape[1] == logits.shape[1]:
            yield len(whole), range(start, start + len(logits))

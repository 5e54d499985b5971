"""Which logits a test counts: the prompt's, their mean with the anchor prompt's, or the latter."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

from torch import Tensor

from ..encoders.clip_models import words_of
from ..encoders.image_calls import ImageCall
from ..encoders.logits import as_logits
from ..errors import UserError
from ..method.metrics import relative_spread
from ..method.objective import average
from .stage_two import AnchorOPT

log = logging.getLogger("anchoropt_plugin")

LARGEST_SPREAD = 5
"""A note tells of logits that spread further than the anchor logits; DePT's reach this."""


class TestRule:
    """The rule of ENSEMBLE: "always", "never", "anchors", or "auto".

    Args:
        run: AnchorOPT in the trainer.
        subsample: ``DATASET.SUBSAMPLE_CLASSES``, used only if no training classes are recorded.

    Attributes:
        trained_classes: the words of the classes that the prompt was trained on; None if unknown.
        is_in_test: whether a test runs now.
        is_used: whether it gave logits.
    """

    __test__ = False  # for pytest

    def __init__(self, run: AnchorOPT, subsample: str) -> None:
        self._run, self._subsample = run, subsample
        self._ensemble = run.settings.ensemble
        self._classes = frozenset(map(words_of, run.classes))
        self.trained_classes: frozenset[tuple[str, ...]] | None = None
        self.is_in_test = self.is_used = self._compared_scales = False

    @property
    def averages(self) -> bool:
        """Whether test logits are averaged with l_a: "auto" does so if a class was not trained."""
        if self._ensemble != "auto":
            return self._ensemble == "always"
        if self.trained_classes is None:
            return self._subsample != "base"
        return not self.trained_classes.issuperset(self._classes)

    @property
    def counts_anchors(self) -> bool:
        """Whether the logits of a test depend on l_a."""
        return self._ensemble == "anchors" or self.averages

    def in_words(self) -> str:
        """Return which logits a test counts, and why."""
        rule = f"ENSEMBLE {self._ensemble}"
        if self._ensemble == "anchors":
            return f"of the anchor prompt alone ({rule})"
        which = "the mean with the anchor prompt's" if self.averages else "the prompt's"
        if self._ensemble == "auto" and self.trained_classes is not None:
            n = len(self._classes - self.trained_classes)
            rule += f": {n} of {len(self._classes)} classes were not trained"
        return f"{which} ({rule})"

    def logits(self, output: Any, images: Any = None) -> Any:
        """Return the logits used for evaluation: l_n, the mean of l_n and l_a, or l_a.

        Args:
            output: of the host: l_n (B, C), alone or first of several; any other output is returned
                unchanged.
            images: the images (B, 3, R, R) of the output, if known.
        """
        run = self._run
        logits, *others = output if isinstance(output, (tuple, list)) else (output,)
        shape = tuple(getattr(logits, "shape", ()))
        images = images if isinstance(images, Tensor) and images.dim() == 4 else None
        # Not len, which torch.export would take for a constant.
        n = next(iter(shape if images is None else images.shape), 0)
        if shape != (n, len(run.classes)):
            return output
        self.is_used = True
        run.check_prompts()
        if self._ensemble == "anchors":
            logits = run.logits(self.features(n, images))
        elif self.averages:
            own, anchors = as_logits(logits), run.logits(self.features(n, images))
            self._compare_scales(own, anchors)
            logits = average(own, anchors)
        return (logits, *others) if others else logits

    def features(self, n: int, images: Tensor | None) -> Tensor:
        """Return plain features (n, e) of the images of a test, which may be known.

        The host may encode them in parts, in another order or in several views, and other images
        too.
        """
        run = self._run
        call = run.features.of(n, range(n), [] if images is None else [images])
        run.features.forget(call)
        if images is not None and (call is None or call.rearranges(images)):
            call = ImageCall(images, partial(run.plain_images.encode, images))
        if call is None:
            raise UserError(
                f"the host gives its evaluator logits of {n} images, which its image encoder did "
                "not get at once, so AnchorOPT cannot average them with the anchor logits: read "
                "the images with parse_batch_test, or test through model_inference"
            )
        return call.features

    def weights(self, prompts: Tensor | None) -> Tensor | None:
        """Return class weights (C, e) in float32 whose scaled cosines are the rule's ``logits``.

        The mean of two logits of the same features is the logit of the mean of both weights, which
        therefore is not normalised again.

        Args:
            prompts: L2-normalised features (C, e) of the prompts, or None if there are none.

        Returns:
            The weights, or None if the rule needs ``prompts`` and they are None.
        """
        if self._ensemble == "anchors":
            return self._run.class_features()
        if prompts is None or not self.averages:
            return prompts
        return average(prompts, self._run.class_features())

    def _compare_scales(self, own: Tensor, anchors: Tensor) -> None:
        """Warn at the first batch of a test if one of both logits decides most of their mean."""
        if not self.is_in_test or self._compared_scales:
            return
        self._compared_scales, spread = True, relative_spread(own, anchors)
        if spread > LARGEST_SPREAD or spread < 1 / LARGEST_SPREAD:  # False for NaN: one class
            log.warning(
                "the host's logits spread %.2g times as far over the classes as the anchor logits, "
                "so %s decide most of the mean that this test counts (TRAINER.ANCHOROPT.ENSEMBLE): "
                "do they have CLIP's logit scale?",
                spread,
                "they" if spread > 1 else "the latter",
            )

"""The logits that a host's own test loop gives its evaluator, and the images that they are of."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..dassl_compat.evaluation.label_check import LabelCheck
from ..errors import UserError
from .stage_two import AnchorOPT
from .test_rule import TestRule


class TestLoop:
    """What a host parses and infers in one test, for the anchor logits of the right images.

    A loop that does not call ``model_inference`` may read ahead, or leave images out. The labels
    that it gives its evaluator tell which batch its logits are of.

    Args:
        run: AnchorOPT in the trainer.
        rule: which logits it counts.
        host: the name of the host.

    Attributes:
        is_inferred: whether logits of ``model_inference`` were averaged.
    """

    __test__ = False  # for pytest

    def __init__(self, run: AnchorOPT, rule: TestRule, host: str) -> None:
        self.run, self.rule, self.host = run, rule, host
        self.labels = LabelCheck(host)
        self.is_inferred = self.is_parsed = False
        # Weak: a batch is needed only as long as the host holds it.
        self._parsed: list[tuple[weakref.ref[Tensor], list[weakref.ref[Tensor]]]] = []
        self._averaged: set[bool] = set()

    def parse(self, batch: Any, parsed: Any) -> None:
        """Note a batch and the results (images, labels, …) of ``parse_batch_test`` for it."""
        self.labels.add(batch, parsed)
        tensors = [x for x in parsed if isinstance(x, Tensor)] if _is_several(parsed) else []
        images = [weakref.ref(x) for x in tensors if x.dim() == 4]
        if images:
            self.is_parsed = True
            self._parsed = [one for one in self._parsed if one[0]() is not None]
            self._parsed.append((images[0], [weakref.ref(x) for x in tensors if x.dim() == 1]))

    def outputs(self, output: Any, *labels: Any) -> Any:
        """Return what an evaluator counts for ``output``: see ``TestRule.logits``.

        Raises:
            UserError: some outputs can be averaged with the anchor logits, and some cannot.
        """
        run = self.run
        if self.is_inferred:
            if run.features.calls:
                run.warn_once(
                    "%s encodes images outside its model_inference, too: only the logits of "
                    "model_inference are averaged with the anchor logits, and its evaluator gets "
                    "what the host makes of them",
                    self.host,
                )
            return output
        if not self.rule.counts_anchors:
            tested = self.rule.logits(output)
            run.features.clear()
            return tested
        images = self._images_of(labels)
        tested = output
        if images is not None or (run.features.calls and not self.is_parsed):
            tested = self.rule.logits(output, images)
        logits = output[0] if _is_several(output) and output else output
        if tuple(getattr(logits, "shape", ()))[1:] == (len(run.classes),):
            self._averaged.add(tested is not output)
        if len(self._averaged) == 2:
            raise UserError(
                f"the test of {self.host} gives its evaluator some logits with the labels of a "
                "batch of parse_batch_test, and others with other labels, so AnchorOPT cannot "
                "average all of them with the anchor logits: give the evaluator whole batches, or "
                "logits of model_inference"
            )
        return tested

    def _images_of(self, labels: Sequence[Any]) -> Tensor | None:
        """Return the images of the batch that has these labels, if it can be told."""
        given = next((x for x in labels if isinstance(x, Tensor) and x.dim() == 1), None)
        if given is None:
            return None
        known = [
            (x, one)
            for images, found in self._parsed
            for one in (labels() for labels in found)
            if (x := images()) is not None and one is not None
        ]
        same = [x for x, one in known if _share(one, given)]
        equal = same or [x for x, one in known if _equal(one, given)]
        return equal[0] if len({id(x) for x in equal}) == 1 else None


def _is_several(value: Any) -> bool:
    return isinstance(value, (tuple, list))


def _share(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same memory."""
    return one.data_ptr() == other.data_ptr() and one.shape == other.shape


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same values, perhaps on two devices."""
    return one.shape == other.shape and torch.equal(one, other.to(one))

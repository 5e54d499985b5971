"""Whether the labels that a trainer tests with are those of the loader, in their order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...errors import UserError
from ...process import distributed


class LabelCheck:
    """Compares the results of ``parse_batch_test`` with their batches, for one test.

    If images had another order than their batch, ``predictions.csv`` would name wrong images; if
    classes had another order, it would name wrong classes, and anchor logits would not fit.

    Args:
        trainer: its name.

    >>> check = LabelCheck("CoOp")
    >>> batch = {"img": torch.zeros(2, 3, 8, 8), "label": torch.tensor([0, 1])}
    >>> check.add(batch, (batch["img"], torch.tensor([0, 1])))
    >>> check.settle()
    >>> check.add(batch, (batch["img"], torch.tensor([1, 0])))
    >>> check.settle()
    Traceback (most recent call last):
        ...
    anchoropt_plugin.errors.UserError: parse_batch_test of CoOp returns other labels than ...
    """

    def __init__(self, trainer: str) -> None:
        self.trainer = trainer
        self._seen: list[tuple[Tensor, list[Tensor]]] = []

    def add(self, batch: Any, parsed: Any) -> None:
        """Note the labels of a batch and those in ``parsed`` (images, labels, …), if any."""
        labels = batch.get("label") if isinstance(batch, Mapping) else None
        if not isinstance(labels, Tensor) or not isinstance(parsed, (tuple, list)):
            return
        # A host may return further numbers of each image, or the labels of several views.
        found = [x for x in parsed[1:] if isinstance(x, Tensor) and x.shape == labels.shape]
        if found and not any(x is labels for x in found):
            # A copy, because a worker's tensor keeps a file open.
            self._seen.append((labels.clone(), found))

    def settle(self) -> None:
        """Compare what was noted: not earlier, as each comparison waits for a GPU.

        Raises:
            UserError: the labels of a batch are in none of its results.
        """
        differ = any(
            not any(torch.equal(x.cpu(), labels.to("cpu", x.dtype)) for x in found)
            for labels, found in self._seen
        )
        if any(distributed.gathered(differ)):
            raise UserError(
                f"parse_batch_test of {self.trainer} returns other labels than its batch has, or "
                "these in another order, so results would go to wrong images or classes: return "
                "the labels of the batch, in their order"
            )

"""Accuracy, macro F1, per-class accuracy and confusion matrix of a classifier."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from yacs.config import CfgNode

from ...errors import UserError
from ...files.checkpoints import save
from .build import EVALUATOR_REGISTRY


class EvaluatorBase:
    """The interface of an evaluator: ``reset``, ``process`` for each batch, ``evaluate``."""

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg

    def reset(self) -> None:
        """Forget all batches."""
        raise NotImplementedError

    def process(self, mo: Tensor, gt: Tensor) -> None:
        """Take a batch: the model's output and the ground truth."""
        raise NotImplementedError

    def evaluate(self) -> OrderedDict[str, float]:
        """Print and return the results; the first one selects the best model."""
        raise NotImplementedError


@EVALUATOR_REGISTRY.register()
class Classification(EvaluatorBase):
    """The evaluator of classifiers: how often the highest logit is the label's.

    Args:
        cfg: the configuration. ``TEST.PER_CLASS_RESULT`` adds the accuracy of each class.
            ``TEST.COMPUTE_CMAT`` writes the row-normalised confusion matrix, a float64 tensor
            over all labels seen or predicted, to ``OUTPUT_DIR/cmat.pt``.
        lab2cname: a dict from labels to class names.
    """

    def __init__(
        self, cfg: CfgNode, lab2cname: dict[int, str] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(cfg)
        self._lab2cname = lab2cname or {}
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self._true: list[Tensor] = []
        self._predicted: list[Tensor] = []

    def process(self, mo: Tensor, gt: Tensor) -> None:
        """Take a batch: logits (B, C) and labels (B,)."""
        self._predicted.append(mo.argmax(dim=1))
        self._true.append(gt)

    def evaluate(self) -> OrderedDict[str, float]:
        """Print and return ``accuracy``, ``error_rate`` and ``macro_f1``, in per cent.

        The macro F1 score is the mean over the labels seen. With ``TEST.PER_CLASS_RESULT``,
        ``perclass_accuracy``, the mean over classes, comes last.

        Raises:
            UserError: a split without images.
        """
        if not self._true:
            raise UserError("nothing to evaluate: this split of the data set has no images")
        # Moved here at once, as each move from a GPU is a wait.
        true, predicted = torch.cat(self._true).cpu(), torch.cat(self._predicted).cpu()
        n_labels = int(torch.maximum(true.max(), predicted.max())) + 1
        hits, support, guesses = (
            torch.bincount(labels, minlength=n_labels).double()
            for labels in (true[true == predicted], true, predicted)
        )
        seen = support > 0
        total, correct = len(true), int(hits.sum())
        accuracy = 100.0 * correct / total
        self.counts = {"total": total, "correct": correct}  # for results.json
        f1 = 2 * hits[seen] / (support + guesses)[seen]
        results = OrderedDict(
            accuracy=accuracy,
            error_rate=100.0 - accuracy,
            macro_f1=100.0 * f1.mean().item(),
        )
        print("=> result")
        print(f"* total: {total:,}")
        print(f"* correct: {correct:,}")
        print(f"* accuracy: {accuracy:.1f}%")
        print(f"* error: {results['error_rate']:.1f}%")
        print(f"* macro_f1: {results['macro_f1']:.1f}%")

        if self.cfg.TEST.PER_CLASS_RESULT:
            results["perclass_accuracy"] = self._print_per_class(hits, support)
        if self.cfg.TEST.COMPUTE_CMAT:
            path = Path(self.cfg.OUTPUT_DIR, "cmat.pt")
            save(_confusion(true, predicted), path)
            print(f"Confusion matrix is saved to {path}")
        return results

    def _print_per_class(self, hits: Tensor, support: Tensor) -> float:
        print("=> per-class result")
        accuracies = []
        for label in support.nonzero().flatten().tolist():
            correct, total = int(hits[label]), int(support[label])
            accuracies.append(100.0 * correct / total)
            print(
                f"* class: {label} ({self._lab2cname.get(label, '')})\t"
                f"total: {total:,}\tcorrect: {correct:,}\tacc: {accuracies[-1]:.1f}%"
            )
        mean = sum(accuracies) / len(accuracies)
        print(f"* average: {mean:.1f}%")
        return mean


def _confusion(true: Tensor, predicted: Tensor) -> Tensor:
    """Return the row-normalised confusion matrix over all n labels, float64: 8 n² bytes."""
    labels, places = torch.cat([true, predicted]).unique(return_inverse=True)
    rows, columns = places.split(len(true))
    counts = torch.zeros(len(labels), len(labels), dtype=torch.double)
    counts.view(-1).index_add_(
        0, rows * len(labels) + columns, torch.ones(len(true), dtype=torch.double)
    )
    return counts.div_(counts.sum(dim=1, keepdim=True).clamp(min=1))

"""The images and labels that a step was given, as the loader made them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class Batch:
    """What a host's ``forward_backward`` was given: dicts of ``img`` and ``label``, as Dassl's.

    Args:
        given: the arguments of ``forward_backward``; what is no dict is skipped.

    Attributes:
        images: the views, each (B, 3, R, R).
        labels: the labels (B,) of each dict.
        parsed: the labels that the host made of them, if known.

    >>> batch = Batch([{"img": torch.zeros(3, 3, 8, 8), "label": torch.tensor([4, 0, 2])}])
    >>> batch.is_labelled(torch.tensor([4, 0, 2])), batch.is_labelled(torch.tensor([0, 1, 2]))
    (True, False)
    """

    def __init__(self, given: Iterable[Any]) -> None:
        dicts = [one for one in given if isinstance(one, Mapping)]
        self.images = [x for one in dicts for x in views(one.get("img"))]
        labels = (one.get("label") for one in dicts)
        self.labels = [x for x in labels if isinstance(x, Tensor) and x.dim() == 1]
        self.parsed: Tensor | None = None

    def is_labelled(self, targets: Tensor) -> bool:
        """Whether ``targets`` of a cross-entropy are the labels of this batch.

        They may be those of several views of the batch, of consecutive images in it, or smoothed. A
        batch without labels has no others to compare with.
        """
        # The host does not wait for a GPU to compare labels that it made from those of the batch.
        if not self.labels or (targets is self.parsed and targets.device.type != "cpu"):
            return True
        if targets.is_floating_point():
            classes = targets.argmax(-1)
            others = targets.scatter(-1, classes[..., None], targets.amin(-1, keepdim=True))
            if targets.dim() != 2 or not torch.equal(others, others[:, :1].expand_as(others)):
                return False
            targets = classes
        return targets.dim() == 1 and any(_are(targets, labels) for labels in self.labels)

    def place_of_labels(self, parsed: Any) -> int | None:
        """Return which result of a host's ``parse_batch_train`` is the labels, or None."""
        results = parsed if isinstance(parsed, (tuple, list)) else []
        for place, result in enumerate(results):
            if isinstance(result, Tensor) and result.dim() == 1 and self.is_labelled(result):
                return place
        return None


def views(images: Any) -> Sequence[Tensor]:
    """Return the views (B, 3, R, R) of a batch: one tensor, or several in a list."""
    parts = images if isinstance(images, (tuple, list)) else [images]
    return [part for part in parts if isinstance(part, Tensor)]


def _are(targets: Tensor, labels: Tensor) -> bool:
    labels = labels.to(targets)
    n, many = len(targets), len(targets) // max(1, len(labels))
    if n < len(labels):
        return n > 0 and bool((labels.unfold(0, n, 1) == targets).all(1).any())
    in_turn, in_a_row = labels.repeat(many), labels.repeat_interleave(many)
    return torch.equal(targets, in_turn) or torch.equal(targets, in_a_row)

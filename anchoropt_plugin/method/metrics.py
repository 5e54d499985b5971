"""Scalars of a run for TensorBoard: mean losses, agreement of logits, entropy of P."""

from __future__ import annotations

import torch
from torch import Tensor


class Means:
    """Means of scalars over the steps of an epoch; sums stay on their device until ``take``.

    >>> means = Means()
    >>> means.add(loss=torch.tensor(1.0))
    >>> means.add(loss=torch.tensor(2.0))
    >>> means.take(), means.take()
    ({'loss': 1.5}, {})
    """

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor, int]] = {}

    def add(self, **values: Tensor) -> None:
        """Add the values of a step, each a scalar."""
        for name, value in values.items():
            total, steps = self._sums.get(name, (0.0, 0))
            self._sums[name] = total + value.detach().float(), steps + 1

    def take(self) -> dict[str, float]:
        """Return the means of the values added since the last call."""
        means = {name: total.item() / steps for name, (total, steps) in self._sums.items()}
        self._sums.clear()
        return means


@torch.no_grad()
def agreement(prompt_logits: Tensor, anchor_logits: Tensor) -> Tensor:
    """Return the fraction of images to which both logits (B, C) give the same class.

    >>> agreement(torch.tensor([[1.0, 2.0], [2.0, 1.0]]), torch.tensor([[0.0, 9.0], [1.0, 3.0]]))
    tensor(0.5000)
    """
    return (prompt_logits.argmax(-1) == anchor_logits.argmax(-1)).float().mean()


@torch.no_grad()
def relative_spread(prompt_logits: Tensor, anchor_logits: Tensor) -> float:
    """Return how far logits (B, C) spread over the classes, relative to the anchor logits (B, C).

    >>> relative_spread(torch.tensor([[0.0, 4.0]]), torch.tensor([[5.0, 7.0]]))
    2.0
    """
    own, anchors = (x.float().std(-1).mean() for x in (prompt_logits, anchor_logits))
    return (own / anchors).item()


def entropy(matrix: Tensor) -> Tensor:
    """Return the mean entropy, in nats, of the rows of a matrix (n, n) of distributions.

    >>> round(entropy(torch.full((2, 2), 0.5)).item(), 4)  # log 2
    0.6931
    >>> entropy(torch.eye(3)).item()
    0.0
    """
    return torch.special.entr(matrix).sum(-1).mean()

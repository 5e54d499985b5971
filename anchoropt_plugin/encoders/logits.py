"""What a model returns for images: logits, or probabilities already."""

from __future__ import annotations

import torch
from torch import Tensor


def as_logits(output: Tensor) -> Tensor:
    """Turn probabilities (B, C) into logits; logits are returned as they are.

    >>> import torch
    >>> as_logits(torch.tensor([[1.0, 3.0]]).softmax(-1)).diff().round()
    tensor([[2.]])
    >>> as_logits(torch.tensor([[1.0, 3.0]]))
    tensor([[1., 3.]])
    """
    full = output.float()
    # Not by an `if`, which would wait for a GPU.
    logarithms = full.clamp_min(torch.finfo(full.dtype).tiny).log()
    return torch.where(are_probabilities(output), logarithms, full)


def are_probabilities(output: Tensor) -> Tensor:
    """Return a boolean scalar: whether all rows (B, C) are probabilities.

    >>> are_probabilities(torch.tensor([[0.25, 0.75]])), are_probabilities(torch.zeros(1, 2))
    (tensor(True), tensor(False))
    """
    full = output.float()
    tolerance = 1e-5 if output.dtype in (torch.float32, torch.float64) else 1e-2
    sums_to_one = (full.sum(-1) - 1).abs() <= tolerance
    return (full >= 0).all() & sums_to_one.all()


def probabilities(output: Tensor) -> Tensor:
    """Return probabilities (B, C) in float32, of logits or of probabilities.

    >>> import torch
    >>> probabilities(torch.tensor([[0.25, 0.75]])), probabilities(torch.zeros(1, 2))
    (tensor([[0.2500, 0.7500]]), tensor([[0.5000, 0.5000]]))
    """
    return as_logits(output).softmax(-1)

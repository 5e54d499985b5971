"""Random numbers from an explicit generator, so that a seed fixes everything."""

from __future__ import annotations

import torch
from torch import Tensor


def uniform(generator: torch.Generator, n: int, low: float, high: float) -> Tensor:
    """Draw ``n`` float32 numbers, uniform in [low, high).

    >>> bool((uniform(torch.Generator().manual_seed(0), 100, 2, 3) >= 2).all())
    True
    """
    return torch.rand(n, generator=generator) * (high - low) + low


def each(values: Tensor) -> Tensor:
    """Reshape (n,), one value for each image, to (n, 1, 1)."""
    return values[:, None, None]


def integers(generator: torch.Generator, n: int, low: int, high: int) -> Tensor:
    """Draw ``n`` int64 numbers, uniform in {low, …, high - 1}.

    >>> sorted(set(integers(torch.Generator().manual_seed(0), 100, 1, 4).tolist()))
    [1, 2, 3]
    """
    return torch.randint(low, high, (n,), generator=generator)


def chance(generator: torch.Generator, n: int, probability: float) -> Tensor:
    """Draw ``n`` booleans, each true with ``probability``.

    >>> bool(chance(torch.Generator().manual_seed(0), 100, 1.0).all())
    True
    """
    return torch.rand(n, generator=generator) < probability

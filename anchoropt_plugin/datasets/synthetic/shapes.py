"""Signed distance functions of the shapes.

Each function takes coordinates ``u`` (right) and ``v`` (down), float tensors of the same size, in
which the shape roughly fills [-1, 1]. It returns the distance to the shape's edge, negative inside.
The distances are exact or close lower bounds, enough for soft edges and outlines.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .vocabulary import SHAPES


def _length(x: Tensor, y: Tensor) -> Tensor:
    return torch.sqrt(x * x + y * y + 1e-9)  # never 0, as a division may follow


def _box(u: Tensor, v: Tensor, half_width: float, half_height: float) -> Tensor:
    return torch.maximum(u.abs() - half_width, v.abs() - half_height)


def _sector(u: Tensor, v: Tensor, n: int) -> Tensor:
    """Return the angle from the nearest of n equally spaced spokes; the first one points up."""
    half = math.pi / n
    return torch.remainder(torch.atan2(u, -v) + half, 2 * half) - half


def _polygon(u: Tensor, v: Tensor, n: int, radius: float) -> Tensor:
    """Return the distance to a regular polygon with a flat top and corners at ``radius``."""
    return _length(u, v) * torch.cos(_sector(u, v, n)) - radius * math.cos(math.pi / n)


def _star(u: Tensor, v: Tensor) -> Tensor:
    angle, radius = _sector(u, v, 5).abs(), _length(u, v)
    x, y = radius * torch.cos(angle), radius * torch.sin(angle)
    # One edge, from the tip (1, 0) to the notch; all other edges are mirror images.
    notch_x, notch_y = 0.42 * math.cos(math.pi / 5), 0.42 * math.sin(math.pi / 5)
    normal_x, normal_y = notch_y, 1 - notch_x
    return ((x - 1) * normal_x + y * normal_y) / math.hypot(normal_x, normal_y)


def _heart(u: Tensor, v: Tensor) -> Tensor:
    x, y = u.abs(), 0.45 - v
    lobe = _length(x - 0.42, y - 0.62) - 0.48
    tip = torch.maximum(x - (y + 0.45) * 0.83, y - 0.72) * 0.77
    return torch.minimum(lobe, tip)


def _arrow(u: Tensor, v: Tensor) -> Tensor:
    shaft = _box(u + 0.3, v, 0.55, 0.2)
    head = torch.maximum(0.1 - u, (u - 0.1) * 0.66 + v.abs() * 0.75 - 0.5)
    return torch.minimum(shaft, head)


_DISTANCE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "circle": lambda u, v: _length(u, v) - 0.8,
    "square": lambda u, v: _box(u, v, 0.7, 0.7),
    "triangle": lambda u, v: _polygon(u, v, 3, 1.0),
    "star": _star,
    "cross": lambda u, v: torch.minimum(_box(u, v, 0.85, 0.28), _box(u, v, 0.28, 0.85)),
    "ring": lambda u, v: (_length(u, v) - 0.62).abs() - 0.2,
    "heart": _heart,
    "diamond": lambda u, v: (u.abs() / 0.62 + v.abs() / 0.95 - 1) * 0.52,
    "hexagon": lambda u, v: _polygon(u, v, 6, 0.88),
    "crescent": lambda u, v: torch.maximum(_length(u, v) - 0.85, 0.68 - _length(u - 0.42, v)),
    "arrow": _arrow,
    "oval": lambda u, v: (_length(u / 0.92, v / 0.52) - 1) * 0.55,
    "pentagon": lambda u, v: _polygon(u, v, 5, 0.92),
    "semicircle": lambda u, v: torch.maximum(_length(u, v - 0.35) - 0.88, v - 0.35),
}


def signed_distance(shape: str, u: Tensor, v: Tensor) -> Tensor:
    """Return the distance of each point to the edge of ``shape``, negative inside.

    Args:
        shape: a name in ``vocabulary.SHAPES``.
        u, v: float coordinates of the same size, right and down; the shape roughly fills [-1, 1].

    Returns:
        A float tensor of the same size.

    Raises:
        KeyError: an unknown shape.

    >>> middle = torch.zeros(1)
    >>> bool(signed_distance("circle", middle, middle) < 0)
    True
    >>> bool(signed_distance("ring", middle, middle) < 0)
    False
    """
    return _DISTANCE[shape](u, v)


def shape_distances(shape: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Return ``signed_distance`` for images of different shapes.

    Args:
        shape: (n,) integer indices in ``vocabulary.SHAPES``.
        u, v: (n, height, width) float coordinates.

    Returns:
        (n, height, width) float distances.
    """
    distance = torch.empty_like(u)
    for index, name in enumerate(SHAPES):
        rows = (shape == index).nonzero().squeeze(1)
        if len(rows):
            distance[rows] = signed_distance(name, u[rows], v[rows])
    return distance

"""Drawings of scenes: soft-edged shapes and digits in front of a background.

All functions take a whole batch; images are float32 (n, 3, SIZE, SIZE) in [0, 1].
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .digits import digit_distances
from .sampling import chance, each, uniform
from .scenes import Scenes
from .shapes import shape_distances
from .vocabulary import COLOURS, FILLS

SIZE = 32
"""Height and width of every image, in pixels."""

_PIXEL = 2 / SIZE  # in the coordinates below
_CENTRES = (torch.arange(SIZE) + 0.5) * _PIXEL - 1
_Y, _X = torch.meshgrid(_CENTRES, _CENTRES, indexing="ij")
_RGB = torch.tensor([colour.rgb for colour in COLOURS.values()])
_FILL = {name: index for index, name in enumerate(FILLS)}


def _plane(colour: Tensor) -> Tensor:
    """Reshape (n, 3), one colour for each image, to (n, 3, 1, 1)."""
    return colour[:, :, None, None]


def _coverage(distance: Tensor, pixel: Tensor | float = _PIXEL) -> Tensor:
    """Return the covered share of each pixel, from the distance of its centre to the edge."""
    return (0.5 - distance / pixel).clamp(0, 1)


def _paint(generator: torch.Generator, colour: Tensor, spread: float) -> Tensor:
    """Return (n, 3) RGB values, spread about the colours' means."""
    return (_RGB[colour] + torch.randn(len(colour), 3, generator=generator) * spread).clamp(0, 1)


def _shaded(generator: torch.Generator, plain: Tensor) -> Tensor:
    """Return images of the background colours (n, 3) with a faint brightness gradient."""
    n = len(plain)
    across, down = each(uniform(generator, n, -1, 1)), each(uniform(generator, n, -1, 1))
    return _plane(plain) + ((_X * across + _Y * down) * 0.08)[:, None]


def _clutter(generator: torch.Generator, images: Tensor) -> Tensor:
    """Draw one half-transparent bar or blob of a random colour on every image."""
    n = len(images)
    angle = each(uniform(generator, n, 0, math.pi))
    offset = each(uniform(generator, n, -1, 1))
    along = _X * torch.cos(angle) + _Y * torch.sin(angle) - offset
    bar = along.abs() - each(uniform(generator, n, 0.03, 0.12))
    x, y = each(uniform(generator, n, -1, 1)), each(uniform(generator, n, -1, 1))
    blob = torch.hypot(_X - x, _Y - y) - each(uniform(generator, n, 0.05, 0.25))
    distance = torch.where(each(chance(generator, n, 0.5)), bar, blob)
    alpha = _coverage(distance) * each(uniform(generator, n, 0.2, 0.9))
    return torch.lerp(images, _plane(torch.rand(n, 3, generator=generator)), alpha[:, None])


def _pattern(
    generator: torch.Generator, fill: Tensor, x: Tensor, y: Tensor, scale: Tensor
) -> Tensor:
    """Return (n, height, width) weights of a pattern's second colour, 0 to 1.

    ``x`` and ``y`` are relative to the shape's centre, in the image's scale. On small shapes the
    frequency does not grow in full, as the pattern would be finer than the pixels.
    """
    n = len(fill)
    frequency = each(uniform(generator, n, 3.5, 5.2)) / each(scale).clamp_min(0.45)
    phase = each(uniform(generator, n, 0, 2 * math.pi))
    angle = each(uniform(generator, n, 0, math.pi))
    u = (x * torch.cos(angle) + y * torch.sin(angle)) * frequency
    v = (y * torch.cos(angle) - x * torch.sin(angle)) * frequency
    stripes = torch.sin(2.2 * u + phase)
    dots = torch.cos(2.2 * u) + torch.cos(2.2 * v) - 0.75
    checks = torch.sin(1.9 * u + phase) * torch.sin(1.9 * v + phase) * 2.2
    height = torch.full_like(u, -9.0)  # no pattern
    for name, wave in (("striped", stripes), ("dotted", dots), ("checkered", checks)):
        height = torch.where(each(fill == _FILL[name]), wave, height)
    return torch.sigmoid(height * 5)


def draw_shapes(
    generator: torch.Generator,
    scenes: Scenes,
    *,
    clutter: int = 0,
    rotation: float = 0.35,
    colour_spread: float = 0.06,
) -> Tensor:
    """Draw scenes of shapes, each shape at a random place.

    Args:
        generator: the source of places, angles, shades and clutter.
        scenes: n scenes of shapes.
        clutter: the number of bars and blobs behind every shape.
        rotation: the standard deviation of a shape's rotation, in radians.
        colour_spread: the standard deviation of RGB values about the colours' means.

    Returns:
        (n, 3, SIZE, SIZE) float32 images in [0, 1].
    """
    n = len(scenes)
    large = scenes.large.bool()
    scale = torch.where(large, uniform(generator, n, 0.68, 0.95), uniform(generator, n, 0.44, 0.62))
    room = (1 - scale) * 0.8 + 0.05
    x = _X - each(uniform(generator, n, -1, 1) * room)
    y = _Y - each(uniform(generator, n, -1, 1) * room)
    angle = each(torch.randn(n, generator=generator) * rotation)
    stretch = torch.exp(torch.randn(n, generator=generator) * 0.07)
    u = (x * torch.cos(angle) + y * torch.sin(angle)) / each(scale * stretch)
    v = (y * torch.cos(angle) - x * torch.sin(angle)) / each(scale / stretch)
    distance = shape_distances(scenes.shape, u, v)
    pixel = each(_PIXEL / scale)

    paint = _paint(generator, scenes.colour, colour_spread)
    pale_or_dark = torch.where(paint.mean(1, keepdim=True) > 0.55, 0.0, 0.62)
    second = _pattern(generator, scenes.fill, x, y, scale)[:, None]
    body = torch.lerp(_plane(paint), _plane(paint * 0.35 + pale_or_dark), second)

    line = each(uniform(generator, n, 0.09, 0.15)) + pixel / 2
    outline = _coverage((distance + line).abs() - line, pixel)
    hollow = each(scenes.fill == _FILL["hollow"])
    coverage = torch.where(hollow, outline, _coverage(distance, pixel))[:, None]

    # Backgrounds have less contrast, so that white on yellow and black on brown stay visible.
    backdrop = _paint(generator, scenes.background, colour_spread) * 0.75 + 0.12
    images = _shaded(generator, backdrop)
    for _ in range(clutter):
        images = _clutter(generator, images)
    return torch.lerp(images, body, coverage).clamp(0, 1)


def draw_digits(generator: torch.Generator, scenes: Scenes) -> Tensor:
    """Draw scenes of digits, each in another handwriting.

    Args:
        generator: the source of handwritings, pens and shades.
        scenes: n scenes of digits.

    Returns:
        (n, 3, SIZE, SIZE) float32 images in [0, 1].
    """
    distance = digit_distances(scenes.digit, _X, _Y, generator)
    pen = each(uniform(generator, len(scenes), 0.06, 0.2))
    ink = _plane(_paint(generator, scenes.colour, 0.06))
    paper = _plane(_paint(generator, scenes.background, 0.06))
    return torch.lerp(paper, ink, _coverage(distance - pen)[:, None])

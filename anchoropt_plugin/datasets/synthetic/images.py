"""Synthetic images with their scenes for pre-training, and clean images of held-out triples."""

from __future__ import annotations

import torch
from torch import Tensor

from . import camera
from .drawing import draw_digits, draw_shapes
from .sampling import integers
from .scenes import Scenes, benchmark_scenes, sample_digits, sample_shapes


def training_images(generator: torch.Generator, n: int) -> tuple[Tensor, Scenes]:
    """Draw ``n`` synthetic images in all styles, a quarter of them digits.

    Returns:
        (n, 3, SIZE, SIZE) float32 images in [0, 1], and their scenes for ``caption``. No image
        shows a benchmark triple.
    """
    shapes, digits = sample_shapes(generator, n - n // 4), sample_digits(generator, n // 4)
    clutter = int(integers(generator, 1, 0, 3))
    images = torch.cat(
        [draw_shapes(generator, shapes, clutter=clutter), draw_digits(generator, digits)]
    )
    scenes = Scenes.cat([shapes, digits])
    return camera.take(generator, images, scenes), scenes


def benchmark_images(generator: torch.Generator, per_class: int) -> tuple[Tensor, Tensor]:
    """Draw large clean images of the 48 held-out triples, class by class.

    Returns:
        (48 * per_class, 3, SIZE, SIZE) float32 images, and (48 * per_class,) int64 labels.
    """
    scenes, label = benchmark_scenes(generator, per_class, large=1.0)
    return draw_shapes(generator, scenes), label

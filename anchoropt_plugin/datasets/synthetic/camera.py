"""Camera effects on drawn images: light, blur, noise, coarse pixels.

Images are float32 (n, 3, height, width) in [0, 1], before and after.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .sampling import uniform
from .scenes import Scenes
from .vocabulary import STYLES


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur each image by a Gaussian of another width.

    Args:
        images: (n, channels, height, width) float.
        sigma: (n,) float, in pixels; the kernel ends 3 pixels from its centre.

    Returns:
        Blurred images of the same shape, padded by their edges.
    """
    n, channels, height, width = images.shape
    offset = torch.arange(-3.0, 4.0)
    kernel = torch.exp(-(offset**2) / (2 * sigma[:, None].clamp_min(0.05) ** 2))
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    planes = images.reshape(1, n * channels, height, width)  # one group for each plane
    planes = F.pad(planes, (3, 3, 3, 3), mode="replicate")
    planes = F.conv2d(planes, kernel[:, None, :, None], groups=n * channels)
    planes = F.conv2d(planes, kernel[:, None, None, :], groups=n * channels)
    return planes.view(n, channels, height, width)


def add_noise(generator: torch.Generator, images: Tensor, sigma: Tensor) -> Tensor:
    """Add white noise, ``sigma`` (n,) for each image, and clip to [0, 1]."""
    noise = torch.randn(images.shape, generator=generator)
    return (images + noise * sigma[:, None, None, None]).clamp(0, 1)


def coarsen(images: Tensor, pixels: int) -> Tensor:
    """Average down to ``pixels`` x ``pixels`` and enlarge again, like a resized tiny file.

    >>> coarsen(torch.ones(1, 3, 32, 32), 8).shape
    torch.Size([1, 3, 32, 32])
    """
    small = F.interpolate(images, size=(pixels, pixels), mode="area")
    # With antialias the bicubic kernel is that of PIL, as in the CLIP transforms.
    large = F.interpolate(small, size=images.shape[-2:], mode="bicubic", antialias=True)
    return large.clamp(0, 1)


def take(generator: torch.Generator, images: Tensor, scenes: Scenes) -> Tensor:
    """Return drawings as a camera sees them, each in the style of its scene.

    Args:
        generator: the source of strengths and of the light's tint.
        images: (n, 3, height, width) drawings.
        scenes: the n scenes of the drawings; reads ``style``, and ``digit`` for coarse pixels.

    Returns:
        New images of the same shape.
    """
    n = len(scenes)
    images = images * (1 - torch.rand(n, 3, generator=generator) * 0.15)[:, :, None, None]
    style = {name: scenes.style == index for index, name in enumerate(STYLES)}

    rows = style["blurry"].nonzero().squeeze(1)
    if len(rows):
        images[rows] = blur(images[rows], uniform(generator, len(rows), 0.5, 1.1))
    rows = style["dark"].nonzero().squeeze(1)
    images[rows] *= uniform(generator, len(rows), 0.35, 0.65)[:, None, None, None]
    pixels = torch.where(torch.rand(n, generator=generator) < 0.5, 8, 12)
    pixels = torch.where(scenes.digit < 0, 16, pixels)  # below 16 a shape's pattern is lost
    for count in (8, 12, 16):
        rows = (style["pixelated"] & (pixels == count)).nonzero().squeeze(1)
        if len(rows):
            images[rows] = coarsen(images[rows], count)
    faint, strong = uniform(generator, n, 0, 0.03), uniform(generator, n, 0.08, 0.2)
    return add_noise(generator, images, torch.where(style["noisy"], strong, faint))

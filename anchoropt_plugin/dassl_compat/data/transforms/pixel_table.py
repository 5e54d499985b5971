"""Turn 8-bit pixels into normalised numbers by looking them up: there are only 256 of each channel.

The table holds what torchvision computes for each value, so every number is the same to the bit, in
a quarter of the time; ``benchmarks/loader.py`` measures it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torchvision.transforms as T
from PIL import Image
from torch import Tensor

_VALUES = 256


class PixelTable:
    """``T.ToTensor`` and then ``T.Normalize``, for RGB images with 8 bits a channel.

    Args:
        steps: The two transforms, in this order; other images go through them.

    >>> steps = [T.ToTensor(), T.Normalize([0.5, 0.4, 0.3], [0.2, 0.2, 0.2])]
    >>> image = Image.linear_gradient("L").convert("RGB")
    >>> torch.equal(PixelTable(steps)(image), T.Compose(steps)(image))
    True
    """

    def __init__(self, steps: Sequence[Any]) -> None:
        self.steps = T.Compose(steps)
        values = np.arange(_VALUES, dtype=np.uint8)
        every_value = Image.fromarray(np.stack([values] * 3, -1)[None])
        self.table = self.steps(every_value)[:, 0].numpy()

    def __call__(self, image: Any) -> Tensor:
        if not isinstance(image, Image.Image) or image.mode != "RGB":
            return self.steps(image)
        pixels = np.asarray(image)
        out = np.empty((3, image.height, image.width), np.float32)
        for channel, row in enumerate(self.table):
            # "clip" writes into ``out`` directly; no value is outside of the table.
            np.take(row, pixels[..., channel], out=out[channel], mode="clip")
        return torch.from_numpy(out)


def with_table(steps: Sequence[Any]) -> list[Any]:
    """Return ``steps`` with a table in place of ``T.ToTensor`` and ``T.Normalize`` side by side."""
    kinds = [type(step) for step in steps]
    for number in range(len(steps) - 1):
        if kinds[number : number + 2] == [T.ToTensor, T.Normalize]:
            two = steps[number : number + 2]
            return [*steps[:number], PixelTable(two), *steps[number + 2 :]]
    return list(steps)

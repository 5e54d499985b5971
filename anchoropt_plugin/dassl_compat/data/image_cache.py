"""Cache decoded images in memory, so that a few-shot set is decoded once, not in each epoch."""

from __future__ import annotations

from collections.abc import Iterable

from PIL import Image

from ...files.images import read_image

BUDGET = 1 << 30
"""The most bytes of decoded images that a data set caches."""


class ImageCache:
    """Read images, and cache them until ``budget`` bytes are full.

    >>> len(ImageCache())
    0
    """

    def __init__(self, budget: int = BUDGET) -> None:
        self._free = budget
        self._images: dict[str, Image.Image] = {}

    def __len__(self) -> int:
        return len(self._images)

    def read(self, path: str) -> Image.Image:
        """Return the image at ``path`` in RGB; callers must not change the image.

        Raises:
            UserError: a missing or unreadable image.
        """
        if path in self._images:
            return self._images[path]
        image = read_image(path)
        size = 3 * image.width * image.height
        if size <= self._free:
            self._free -= size
            self._images[path] = image
        return image

    def read_all(self, paths: Iterable[str]) -> None:
        """Read images until the budget is full; worker processes started later share them."""
        for path in paths:
            self.read(path)
            if path not in self._images:
                return

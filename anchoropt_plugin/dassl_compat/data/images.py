"""Decoded pictures kept in memory, so that a few-shot set is not decoded again each epoch."""

from __future__ import annotations

from collections.abc import Iterable

from PIL import Image

from ...files.readers import read_image

BUDGET = 1 << 30
"""Bytes of decoded pictures kept at most by one set."""


class Pictures:
    """Reads pictures, and keeps what it has read until ``budget`` bytes are full.

    >>> Pictures().n_kept
    0
    """

    def __init__(self, budget: int = BUDGET) -> None:
        self._room = budget
        self._kept: dict[str, Image.Image] = {}

    @property
    def n_kept(self) -> int:
        """Pictures in memory."""
        return len(self._kept)

    def read(self, path: str) -> Image.Image:
        """The picture at ``path`` in RGB; do not change it.

        Raises:
            UserError: It is missing, truncated, or not a picture.
        """
        if path in self._kept:
            return self._kept[path]
        image = read_image(path)
        size = 3 * image.width * image.height
        if size <= self._room:
            self._room -= size
            self._kept[path] = image
        return image

    def read_all(self, paths: Iterable[str]) -> None:
        """Read pictures until the budget is full: worker processes started later share them."""
        for path in paths:
            n_kept = self.n_kept
            if path not in self._kept:
                self.read(path)
                if self.n_kept == n_kept:
                    return

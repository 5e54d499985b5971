"""The data sets ``Digits`` and ``Shapes``, written on first use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..errors import UserError
from .embedded import DIGITS_SPLIT, SHAPES_SPLIT, write_digits, write_shapes
from .image_folder import is_image_folder
from .split_dataset import SplitDataset
from .splits import Split
from .synthetic import CLASS_SPLITS


class _EmbeddedDataset(SplitDataset):
    written_on_first_use = True
    are_own = False
    write: Callable[[Path], None]

    def make_split(self) -> Split:
        root = self.dataset_dir.parent
        if not self.dataset_dir.exists() and is_image_folder(root):
            raise UserError(
                f"{type(self).__name__} would be written into {root}, whose folders are classes of "
                "images: give another --root"
            )
        type(self).write(self.dataset_dir)
        return super().make_split()


class Digits(_EmbeddedDataset):
    """The 1,797 handwritten digits of scikit-learn, 8 x 8 pixels, in ten classes."""

    folder = "digits"
    split_file = DIGITS_SPLIT
    write = staticmethod(write_digits)


class Shapes(_EmbeddedDataset):
    """Drawings of 48 combinations of colour, fill and shape, 32 x 32 pixels.

    Without ``DATASET.CLASS_SPLIT`` base and new are split by colour.
    """

    folder = "shapes"
    split_file = SHAPES_SPLIT
    class_splits = CLASS_SPLITS
    write = staticmethod(write_shapes)

"""The base class of data sets with an image folder and a split."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dassl.data.datasets import DatasetBase, Datum

from ..errors import UserError
from ..files.images import UprightPath, check_images
from ..process.distributed import is_main
from .few_shots import FewShots
from .notes import (
    note_copies,
    note_few_shots,
    note_few_validation,
    note_frames,
    note_repeated,
    note_untested_classes,
)
from .split_files import check_files
from .splits import (
    Item,
    Split,
    check_class_split,
    check_parts,
    in_order,
    read_split,
    subsample,
)


class SplitDataset(DatasetBase):
    """A data set in ``DATASET.ROOT/folder`` with its images in ``folder/images``.

    A subclass sets the names. A subclass without a split file overrides :meth:`make_split`.

    Args:
        cfg: the configuration: ``DATASET.ROOT``; ``DATASET.NUM_SHOTS``, below 1 for all images;
            ``SEED`` of the few-shot draw, negative for another draw in every run;
            ``DATASET.SUBSAMPLE_CLASSES``; ``DATASET.CLASS_SPLIT``, a name in ``class_splits``.

    Attributes:
        image_folders: the folders in ``images`` that may be symlinks, as ``images`` itself.
        written_on_first_use: whether the data set writes itself, and so needs no existing root.
        val_is_test: whether the test part is also the validation part.
        test_only: whether all images are for test; no shots are drawn and no classes dropped. The
            training part repeats the test part, as the classes are read from it.
        class_splits: named splits into base and new: all class names in order, base first.
        is_drawn: whether the seed divides the images into a split.
        are_own: whether the images are a user's own: they are turned as their EXIF orientation
            says, and all that a run uses are opened when the data set is built. Public code does
            neither.

    Raises:
        UserError: a missing, incomplete or malformed data set.
    """

    folder = ""
    images = "images"
    split_file = ""
    image_folders: tuple[str, ...] = ()
    written_on_first_use = False
    val_is_test = False
    test_only = False
    class_splits: Mapping[str, Sequence[str]] = {}
    are_own = True

    def __init__(self, cfg: Any) -> None:
        if not cfg.DATASET.ROOT:
            raise UserError("DATASET.ROOT is not given: pass --root, the folder of the data sets")
        class_split = getattr(cfg.DATASET, "CLASS_SPLIT", "")
        check_class_split(class_split, type(self))
        self.dataset_dir = Path(cfg.DATASET.ROOT).expanduser().absolute() / self.folder
        self.image_dir = self.dataset_dir / self.images
        self.seed = cfg.SEED
        # One generator for all draws, as in public code, but not Python's global one.
        self.rng = random.Random(cfg.SEED if cfg.SEED >= 0 else None)
        self._few: FewShots | None = None
        before = self.rng.getstate()
        split = self.make_split()
        self.is_drawn = self.rng.getstate() != before
        whole_val = split.val
        if not self.test_only:
            if self.are_own:  # published splits are used as they are
                whole = split._replace(val=[]) if self.val_is_test else split
                check_parts(whole, str(self.dataset_dir))
            if cfg.DATASET.NUM_SHOTS >= 1:
                given = cfg.DATASET.NUM_SHOTS, cfg.SEED, self.rng, self.dataset_dir, self.image_dir
                self._few = FewShots(split, *given)
                split = self._few.split
            if class_split:  # after the draw: all splits have the same few-shot images
                split = in_order(split, self.class_splits[class_split])
            split = subsample(split, getattr(cfg.DATASET, "SUBSAMPLE_CLASSES", "all"))
            note_few_shots(split.train, cfg.DATASET.NUM_SHOTS)
            test = getattr(cfg, "TEST", None)  # a data set may be read without a run
            if test and "val" in (test.SPLIT, test.FINAL_MODEL.removeprefix("best_")):
                note_few_validation(split.val, whole_val, cfg.DATASET.NUM_SHOTS)
            note_untested_classes(split.train, split.test)
        if self.val_is_test:
            split = split._replace(val=split.test)
        check_files(split, self.image_dir, self.image_folders)
        parts = [self._data(items) for items in split]
        if self.are_own and is_main():  # once is enough for all processes
            paths = [*dict.fromkeys(item.impath for part in parts for item in part)]
            check_images(paths)
            note_frames(paths)
            note_copies(*([], *parts[1:]) if self.test_only else parts)
            note_repeated(parts[2])
        train_x, val, test = parts
        super().__init__(train_x=train_x, val=val, test=test)

    def make_split(self) -> Split:
        """Return the split of the whole data set, by default the content of ``split_file``."""
        if not self.dataset_dir.is_dir():
            raise UserError(f"the data set folder {self.dataset_dir} is missing; check --root")
        return read_split(self.dataset_dir / self.split_file)

    def _data(self, items: Iterable[Item]) -> list[Datum]:
        path_type = UprightPath if self.are_own else str
        return [
            Datum(impath=path_type(f"{self.image_dir}/{path}"), label=label, classname=classname)
            for path, label, classname in items
        ]

    def write_draw(self) -> None:
        """Write a new few-shot draw to its file; a training does so when nothing has refused it."""
        if self._few is not None and is_main():
            self._few.write()

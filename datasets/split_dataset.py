"""The base class of the data sets that are folders of pictures with a split."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from anchoropt_plugin.checkpoints import load_fewshot_pickle
from anchoropt_plugin.errors import UserError
from anchoropt_plugin.runtime.utils.tools import read_json, write_json
from dassl.data.datasets import DatasetBase, Datum

from .splits import (
    Item,
    Split,
    check_drawn,
    check_files,
    digest,
    draw_shots,
    items_of,
    read_split,
    subsample,
)


class SplitDataset(DatasetBase):
    """A data set in ``DATASET.ROOT/folder``, its pictures in ``images`` there.

    A subclass sets the names; one whose split is in no file overrides :meth:`make_split`.

    Args:
        cfg: ``DATASET.ROOT``; ``DATASET.NUM_SHOTS``, below 1 for all pictures; ``SEED``, which
            draws the shots, negative for other ones in every run; ``DATASET.SUBSAMPLE_CLASSES``.

    Raises:
        UserError: The data set is missing, incomplete or malformed.
    """

    folder = ""
    images = "images"
    split_file = ""
    written_on_first_use = False

    def __init__(self, cfg: Any) -> None:
        if not cfg.DATASET.ROOT:
            raise UserError("DATASET.ROOT is not given: pass --root, the folder of the data sets")
        self.dataset_dir = Path(cfg.DATASET.ROOT).expanduser().absolute() / self.folder
        self.image_dir = self.dataset_dir / self.images
        split = self.make_split()
        if cfg.DATASET.NUM_SHOTS >= 1:
            split = self._few_shots(split, cfg.DATASET.NUM_SHOTS, cfg.SEED)
        split = subsample(split, cfg.DATASET.SUBSAMPLE_CLASSES)
        check_files(split, self.image_dir)
        super().__init__(
            train_x=self._data(split.train), val=self._data(split.val), test=self._data(split.test)
        )

    def make_split(self) -> Split:
        """Return the split of the whole data set, by default from ``split_file``."""
        if not self.dataset_dir.is_dir():
            raise UserError(f"the data set folder {self.dataset_dir} is missing; check --root")
        return read_split(self.dataset_dir / self.split_file)

    def _data(self, items: Iterable[Item]) -> list[Datum]:
        return [
            Datum(impath=str(self.image_dir / path), label=label, classname=classname)
            for path, label, classname in items
        ]

    def _few_shots(self, split: Split, shots: int, seed: int) -> Split:
        stem = self.dataset_dir / "split_fewshot" / f"shot_{shots}-seed_{seed}"
        public, own = stem.with_name(f"{stem.name}.pkl"), stem.with_name(f"{stem.name}.json")
        if public.is_file():
            print(f"Few-shot pictures are those in {public}")
            drawn = self._from_public_file(split, public)
            check_drawn(drawn, split, str(public))
            return drawn
        if seed < 0:
            return draw_shots(split, shots, random.Random())
        key = digest(split)
        if own.is_file():
            noted = read_json(own)
            if isinstance(noted, dict) and noted.get("split") == key:
                print(f"Few-shot pictures are those in {own}")
                train, val = (items_of(noted.get(part), f"{own}: {part}") for part in _PARTS)
                drawn = split._replace(train=train, val=val)
                check_drawn(drawn, split, str(own))
                return drawn
            print(f"{own} was drawn from another split; the pictures are drawn anew")
        split = draw_shots(split, shots, random.Random(seed))
        try:
            write_json({"split": key, "train": split.train, "val": split.val}, own)
            print(f"Few-shot pictures are noted in {own}")
        except OSError:
            pass  # a read-only data set: the same seed draws the same pictures again
        return split

    def _from_public_file(self, split: Split, path: Path) -> Split:
        parts = load_fewshot_pickle(path)
        if not parts.get("train"):
            raise UserError(f"{path} holds no training pictures; delete it to draw them anew")
        drawn = {
            part: [
                Item(self._relative(item.impath, path), item.label, item.classname)
                for item in parts[part]
            ]
            for part in _PARTS
            if part in parts
        }
        return split._replace(**drawn)

    def _relative(self, impath: str, source: Path) -> str:
        # Public files have the absolute paths of the machine they were drawn on.
        marker = f"/{self.dataset_dir.name}/{self.images}/".replace("/./", "/")
        _, found, relative = impath.replace("\\", "/").rpartition(marker)
        if not found:
            raise UserError(
                f"{source} names {impath}, which is not in a folder {marker.strip('/')}; "
                "delete the file to have the shots drawn anew"
            )
        return relative


_PARTS = ("train", "val")

"""The base class of the data sets that are folders of pictures with a split."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from anchoropt_plugin.errors import UserError
from anchoropt_plugin.files.readers import read_json, write_json
from dassl.data.datasets import DatasetBase, Datum

from .public_pickles import read_public_pickle
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
    ``picture_folders`` are those in ``images`` that may be links to other places, besides it.
    Pictures for test are those for validation, too, where ``val_is_test``; and where a set is
    ``test_only``, all are for test (and stand for training, which tells the classes): neither
    shots are drawn nor classes left out.

    Args:
        cfg: ``DATASET.ROOT``; ``DATASET.NUM_SHOTS``, below 1 for all pictures; ``SEED``, which
            draws the shots, negative for other ones in every run; ``DATASET.SUBSAMPLE_CLASSES``.

    Raises:
        UserError: The data set is missing, incomplete or malformed.
    """

    folder = ""
    images = "images"
    split_file = ""
    picture_folders: tuple[str, ...] = ()
    written_on_first_use = False
    val_is_test = False
    test_only = False

    def __init__(self, cfg: Any) -> None:
        if not cfg.DATASET.ROOT:
            raise UserError("DATASET.ROOT is not given: pass --root, the folder of the data sets")
        self.dataset_dir = Path(cfg.DATASET.ROOT).expanduser().absolute() / self.folder
        self.image_dir = self.dataset_dir / self.images
        self.seed = cfg.SEED
        # One stream for all that is drawn, as in public code; apart from everybody else's.
        self.rng = random.Random(cfg.SEED if cfg.SEED >= 0 else None)
        self._drawn: tuple[dict[str, Any], Path] | None = None
        split = self.make_split()
        if not self.test_only:
            if cfg.DATASET.NUM_SHOTS >= 1:
                split = self._few_shots(split, cfg.DATASET.NUM_SHOTS)
            split = subsample(split, getattr(cfg.DATASET, "SUBSAMPLE_CLASSES", "all"))
        if self.val_is_test:
            split = split._replace(val=split.test)
        check_files(split, self.image_dir, self.picture_folders)
        super().__init__(
            train_x=self._data(split.train), val=self._data(split.val), test=self._data(split.test)
        )
        self._note_draw()

    def make_split(self) -> Split:
        """Return the split of the whole data set, by default from ``split_file``."""
        if not self.dataset_dir.is_dir():
            raise UserError(f"the data set folder {self.dataset_dir} is missing; check --root")
        return read_split(self.dataset_dir / self.split_file)

    def _data(self, items: Iterable[Item]) -> list[Datum]:
        return [
            Datum(impath=f"{self.image_dir}/{path}", label=label, classname=classname)
            for path, label, classname in items
        ]

    def _few_shots(self, split: Split, shots: int) -> Split:
        stem = self.dataset_dir / "split_fewshot" / f"shot_{shots}-seed_{self.seed}"
        public, own = stem.with_name(f"{stem.name}.pkl"), stem.with_name(f"{stem.name}.json")
        if public.is_file():
            print(f"Few-shot pictures are those in {public}")
            parts = read_public_pickle(public, self.dataset_dir, self.image_dir)
            drawn = split._replace(**{part: parts[part] for part in _PARTS if part in parts})
            check_drawn(drawn, split, str(public))
            return drawn
        if self.seed < 0:
            return draw_shots(split, shots, self.rng)
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
        split = draw_shots(split, shots, self.rng)
        self._drawn = {"split": key, "train": split.train, "val": split.val}, own
        return split

    def _note_draw(self) -> None:
        """Write down which pictures were drawn, now that they were found to be there."""
        if self._drawn is None:
            return
        content, path = self._drawn
        try:
            write_json(content, path)
            print(f"Few-shot pictures are noted in {path}")
        except OSError:
            pass  # a read-only data set: the same seed draws the same pictures again


_PARTS = ("train", "val")

"""The data sets of the table, registered by name."""

from __future__ import annotations

from pathlib import Path

from ..errors import UserError
from .split_dataset import SplitDataset
from .splits import Split, check_classes, read_split
from .table import TABLE, PublicSet


class PublicDataset(SplitDataset):
    """A public data set, with its published split or, if that file is missing, its annotations.

    As in public code, ``SEED`` fixes the division of the annotations into a split, so every seed
    divides the images differently.
    """

    row: PublicSet
    are_own = False

    def make_split(self) -> Split:
        row, folder = self.row, self.dataset_dir
        for needed in (folder, self.image_dir):
            if not needed.is_dir():
                raise UserError(f"the folder {needed} of {row.name} is missing{self._help()}")
        split_file = folder / row.split_file
        if row.split_file and split_file.is_file():
            return self._counted(read_split(split_file))
        missing = [file for file in row.annotations if not (folder / file).is_file()]
        if missing:
            wanted = " or ".join(filter(None, (row.split_file, ", ".join(missing))))
            raise UserError(f"{folder} lacks {wanted}{self._help()}")
        if row.split_file:
            self._warn_of_division()
        split = row.read(folder, self.image_dir, self.rng)
        check_classes(split, str(folder))
        return self._counted(split)

    def _counted(self, split: Split) -> Split:
        found, expected = len({item.label for item in split.train}), self.row.n_classes
        if found != expected:
            print(
                f"Note: {self.row.name} has {expected} classes, but {found} are in "
                f"{self.dataset_dir}: results are not those of the public data set"
            )
        return split

    def _warn_of_division(self) -> None:
        missing = f"{self.row.split_file} is not in {self.dataset_dir}"
        if self.seed < 0:
            raise UserError(
                f"{missing}, and without --seed every run would divide the images differently: get "
                "the file, or give a --seed"
            )
        print(
            f"{missing}: the images are divided with seed {self.seed}. Published results use the "
            "split of that file"
        )

    def _help(self) -> str:
        return where_to_get(self.dataset_dir.parent)


def where_to_get(root: Path) -> str:
    """Return the end of an error message about missing files in ``root``."""
    return f"; `python scripts/data.py --root {root}` says where to get it"


_SAME = (
    "folder", "images", "split_file", "image_folders", "val_is_test", "test_only",
)  # fmt: skip


def _data_set(row: PublicSet) -> type[PublicDataset]:
    names = {name: getattr(row, name) for name in _SAME}
    names |= {"row": row, "__doc__": f"{row.name}, in the folder ``{row.folder}``."}
    return type(row.name, (PublicDataset,), names)


PUBLIC_SETS = {row.name: _data_set(row) for row in TABLE}
"""The data sets of the table by their names."""

"""The data sets of the table, registered by their names."""

from __future__ import annotations

from pathlib import Path

from anchoropt_plugin.errors import UserError
from dassl.data.datasets import DATASET_REGISTRY

from .split_dataset import SplitDataset
from .splits import Split, check_classes, read_split
from .table import TABLE, PublicSet


class PublicDataset(SplitDataset):
    """A public data set: its published split where that is there, else its annotations.

    What public code makes of the annotations, it draws with the numbers of ``SEED``, so another
    seed divides the pictures in another way.
    """

    row: PublicSet

    def make_split(self) -> Split:
        row, folder = self.row, self.dataset_dir
        for needed in (folder, self.image_dir):
            if not needed.is_dir():
                raise UserError(f"the folder {needed} of {row.name} is missing{self._help()}")
        split_file = folder / row.split_file
        if row.split_file and split_file.is_file():
            return read_split(split_file)
        missing = [file for file in row.annotations if not (folder / file).is_file()]
        if missing:
            wanted = " or ".join(filter(None, (row.split_file, ", ".join(missing))))
            raise UserError(f"{folder} lacks {wanted}{self._help()}")
        if row.split_file:
            self._tell_of_division()
        split = row.read(folder, self.image_dir, self.rng)
        check_classes(split, str(folder))
        return split

    def _tell_of_division(self) -> None:
        missing = f"{self.row.split_file} is not in {self.dataset_dir}"
        if self.seed < 0:
            raise UserError(
                f"{missing}, and without --seed every run would divide the pictures anew: get the "
                "file, or give a --seed"
            )
        print(
            f"{missing}: the pictures are divided with seed {self.seed}. Published results are on "
            "the split of that file"
        )

    def _help(self) -> str:
        return where_to_get(self.dataset_dir.parent)


def where_to_get(root: Path) -> str:
    """What an error ends with, where files of a data set in ``root`` are missing."""
    return f"; `python scripts/data.py --root {root}` says where to get it"


_SAME = (
    "folder", "images", "split_file", "picture_folders", "val_is_test", "test_only",
)  # fmt: skip

for _row in TABLE:
    _names = {name: getattr(_row, name) for name in _SAME}
    _names |= {"row": _row, "__doc__": f"{_row.name}, in the folder ``{_row.folder}``."}
    DATASET_REGISTRY.register()(type(_row.name, (PublicDataset,), _names))

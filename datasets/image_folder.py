"""One's own pictures: ``DATASET.NAME ImageFolder``, ``DATASET.ROOT`` the folder they are in."""

from __future__ import annotations

import random
from pathlib import Path

from anchoropt_plugin.errors import UserError
from dassl.data.datasets import DATASET_REGISTRY

from .class_folders import class_folders, pictures, read_classnames
from .split_dataset import SplitDataset
from .splits import Item, Split, check_classes, read_split

_SEED = 1


@DATASET_REGISTRY.register()
class ImageFolder(SplitDataset):
    """The folder ``DATASET.ROOT``, in the first of these layouts that it has:

    1. ``split.json``, or one ``split_*.json``, with paths relative to ``images/``, where there
       is such a folder, else to the root.
    2. ``train/<class>/*``, ``test/<class>/*`` and, if you like, ``val/<class>/*``.
    3. ``<class>/*``: half of each class is for training, a fifth for validation, the rest for
       test; always the same ones.

    Class names are the folders', with a blank for ``_``, or those in ``classnames.txt``: lines
    of a folder's name and the class name.
    """

    images = "."

    def make_split(self) -> Split:
        root = self.dataset_dir
        if not root.is_dir():
            raise UserError(f"the image folder {root} is missing; check --root")
        files = sorted({*root.glob("split.json"), *root.glob("split_*.json")})
        exact = root / "split.json"
        if exact in files or len(files) == 1:
            if (root / "images").is_dir():
                self.images, self.image_dir = "images", root / "images"
            return read_split(exact if exact in files else files[0])
        if files:
            names = ", ".join(file.name for file in files)
            raise UserError(f"{root} has several splits ({names}); name one of them split.json")
        has_parts = (root / "train").is_dir()
        split = _from_parts(root) if has_parts else _from_classes(root)
        check_classes(split, str(root))
        return split


def _classes(parent: Path, root: Path) -> dict[str, tuple[int, str]]:
    """The label and the class name of each class folder in ``parent``, by the folder's name."""
    folders = [folder.name for folder in class_folders(parent)]
    file = root / "classnames.txt"
    if file.exists():
        names = read_classnames(file, folders)
    else:
        names = {folder: as_words(folder) for folder in folders}
    seen: dict[str, str] = {}
    for folder in folders:
        if folder not in names:
            raise UserError(f"{file} has no line for the folder {parent / folder}")
        # As CLIP reads it.
        other = seen.setdefault(" ".join(names[folder].lower().split()), folder)
        if other != folder:
            raise UserError(
                f"the class folders {other!r} and {folder!r} in {parent} have one class name, "
                f"{names[folder]!r}: put their pictures together, or give names in {file}"
            )
    return {folder: (label, names[folder]) for label, folder in enumerate(folders)}


def _pictures(folder: Path, root: Path) -> list[str]:
    return [(folder / name).relative_to(root).as_posix() for name in pictures(folder)]


def _from_parts(root: Path) -> Split:
    if not (root / "test").is_dir():
        raise UserError(f"{root} has a folder train but none called test")
    classes = _classes(root / "train", root)
    parts: dict[str, list[Item]] = {"train": [], "val": [], "test": []}
    for part, items in parts.items():
        for folder in class_folders(root / part) if (root / part).is_dir() else ():
            if folder.name not in classes:
                raise UserError(f"the class folder {folder} has no counterpart in {root / 'train'}")
            items += [Item(path, *classes[folder.name]) for path in _pictures(folder, root)]
    return Split(**parts)


def _from_classes(root: Path) -> Split:
    split = Split([], [], [])
    classes = _classes(root, root)
    for folder in class_folders(root):
        items = [Item(path, *classes[folder.name]) for path in _pictures(folder, root)]
        if len(items) < 4:
            raise UserError(f"the class folder {folder} has {len(items)} pictures; 4 are needed")
        # Seeded by class, so that a class added or removed leaves the others as they are.
        random.Random(f"{_SEED} {folder.name}").shuffle(items)
        n_train, n_val = round(len(items) * 0.5), round(len(items) * 0.2)
        split.train.extend(items[:n_train])
        split.val.extend(items[n_train : n_train + n_val])
        split.test.extend(items[n_train + n_val :])
    return split

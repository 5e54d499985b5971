"""One's own pictures: ``DATASET.NAME ImageFolder``, ``DATASET.ROOT`` the folder they are in."""

from __future__ import annotations

import random
from pathlib import Path

from anchoropt_plugin.errors import UserError
from dassl.data.datasets import DATASET_REGISTRY

from .split_dataset import SplitDataset
from .splits import Item, Split, check_classes, read_split

_PICTURES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_NOT_CLASSES = {"split_fewshot"}
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
        names_of = _read_classnames(root / "classnames.txt")
        if (root / "train").is_dir():
            split = _from_parts(root, names_of)
        else:
            split = _from_classes(root, names_of)
        check_classes(split, str(root))
        return split


def _read_classnames(path: Path) -> dict[str, str] | None:
    if not path.is_file():
        return None
    names = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            folder, _, name = line.strip().partition(" ")
            if not name.strip():
                raise UserError(f"{path}, line {number}: no class name after {folder!r}")
            names[folder] = name.strip()
    return names


def _class_folders(parent: Path) -> list[Path]:
    folders = sorted(
        entry
        for entry in parent.iterdir()
        if entry.is_dir() and entry.name not in _NOT_CLASSES and not entry.name.startswith(".")
    )
    if not folders:
        raise UserError(f"{parent} has no class folders; put each class's pictures into its own")
    return folders


def _classname(folder: Path, names: dict[str, str] | None) -> str:
    if names is None:
        return folder.name.replace("_", " ")
    if folder.name not in names:
        raise UserError(f"classnames.txt has no line for the folder {folder}")
    return names[folder.name]


def _pictures(folder: Path, root: Path) -> list[str]:
    found = sorted(
        entry.relative_to(root).as_posix()
        for entry in folder.iterdir()
        if entry.suffix.lower() in _PICTURES and not entry.name.startswith(".")
    )
    if not found:
        raise UserError(f"the class folder {folder} has no pictures; fill it or remove it")
    return found


def _from_parts(root: Path, names: dict[str, str] | None) -> Split:
    if not (root / "test").is_dir():
        raise UserError(f"{root} has a folder train but none called test")
    labels = {folder.name: label for label, folder in enumerate(_class_folders(root / "train"))}
    parts: dict[str, list[Item]] = {"train": [], "val": [], "test": []}
    for part, items in parts.items():
        for folder in _class_folders(root / part) if (root / part).is_dir() else ():
            if folder.name not in labels:
                raise UserError(f"the class folder {folder} has no counterpart in {root / 'train'}")
            name = _classname(folder, names)
            items += [Item(path, labels[folder.name], name) for path in _pictures(folder, root)]
    return Split(**parts)


def _from_classes(root: Path, names: dict[str, str] | None) -> Split:
    split = Split([], [], [])
    for label, folder in enumerate(_class_folders(root)):
        name = _classname(folder, names)
        items = [Item(path, label, name) for path in _pictures(folder, root)]
        if len(items) < 4:
            raise UserError(f"the class folder {folder} has {len(items)} pictures; 4 are needed")
        # Seeded by class, so that a class added or removed leaves the others as they are.
        random.Random(f"{_SEED} {folder.name}").shuffle(items)
        n_train, n_val = round(len(items) * 0.5), round(len(items) * 0.2)
        split.train.extend(items[:n_train])
        split.val.extend(items[n_train : n_train + n_val])
        split.test.extend(items[n_train + n_val :])
    return split

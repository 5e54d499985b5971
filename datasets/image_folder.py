"""A user's own images: ``DATASET.NAME ImageFolder``, with ``DATASET.ROOT`` the image folder."""

from __future__ import annotations

import random
from pathlib import Path

from anchoropt_plugin.encoders.class_names import as_words
from anchoropt_plugin.errors import UserError
from dassl.data.datasets import DATASET_REGISTRY

from .class_folders import class_folders, image_names, read_classnames
from .divisions import divide
from .split_dataset import SplitDataset
from .splits import Item, Split, check_classes, read_split

_SEED = 1


@DATASET_REGISTRY.register()
class ImageFolder(SplitDataset):
    """The folder ``DATASET.ROOT``, read in the first of these layouts that matches:

    1. ``split.json``, or one ``split_*.json``, with paths relative to ``images/`` if there is such
       a folder, else to the root.
    2. ``train/<class>/*``, ``test/<class>/*`` and optionally ``val/<class>/*``.
    3. ``<class>/*``: of each class 50 % for training, 20 % for validation, the rest for test; the
       same images in every run.

    Class names are the folder names with blanks for ``_``, or those of ``classnames.txt``, with
    lines ``folder class name``.
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
            raise UserError(f"{root} has several splits ({names}); rename one to split.json")
        has_parts = (root / "train").is_dir()
        split = _from_parts(root) if has_parts else _from_classes(root)
        check_classes(split, str(root))
        return split


def _classes(parent: Path, root: Path) -> dict[str, tuple[int, str]]:
    """Return label and class name of each class folder in ``parent``, by the folder's name."""
    folders = [folder.name for folder in class_folders(parent)]
    file = root / "classnames.txt"
    if file.exists():
        names = read_classnames(file, folders)
    else:
        names = {folder: as_words(folder) for folder in folders}
    seen: dict[str, str] = {}
    for folder in folders:
        if folder not in names:
            raise UserError(f"{file} has no line for the folder {parent / folder}; add one")
        # CLIP ignores case and repeated blanks.
        other = seen.setdefault(" ".join(names[folder].lower().split()), folder)
        if other != folder:
            raise UserError(
                f"the class folders {other!r} and {folder!r} in {parent} have the same class name, "
                f"{names[folder]!r}: join the folders, or write other names in {file}"
            )
    return {folder: (label, names[folder]) for label, folder in enumerate(folders)}


def _images(folder: Path, root: Path) -> list[str]:
    return [(folder / name).relative_to(root).as_posix() for name in image_names(folder)]


def _from_parts(root: Path) -> Split:
    if not (root / "test").is_dir():
        raise UserError(f"{root} has a folder train but no folder test; add one")
    classes = _classes(root / "train", root)
    parts: dict[str, list[Item]] = {"train": [], "val": [], "test": []}
    for part, items in parts.items():
        for folder in class_folders(root / part) if (root / part).is_dir() else ():
            if folder.name not in classes:
                raise UserError(f"the class folder {folder} has no counterpart in {root / 'train'}")
            items += [Item(path, *classes[folder.name]) for path in _images(folder, root)]
    return Split(**parts)


def _from_classes(root: Path) -> Split:
    split = Split([], [], [])
    classes = _classes(root, root)
    for folder in class_folders(root):
        items = [Item(path, *classes[folder.name]) for path in _images(folder, root)]
        if len(items) < 4:
            raise UserError(f"the class folder {folder} has {len(items)} images; 4 are needed")
        # With a seed for each class, further classes do not change the division of the others.
        of_class = divide(items, random.Random(f"{_SEED} {folder.name}"))
        for part, more in zip(split, of_class, strict=True):
            part.extend(more)
    return split

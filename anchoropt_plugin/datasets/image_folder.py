"""A user's own images: ``DATASET.NAME ImageFolder``, with ``DATASET.ROOT`` the image folder."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from pathlib import Path, PurePosixPath

from ..encoders.class_names import as_words
from ..encoders.clip_models import first_twins
from ..errors import UserError
from ..files.images import files_in
from .class_folders import class_folders, no_images, read_classnames
from .divisions import divide
from .split_dataset import SplitDataset
from .splits import Item, Split, check_classes, read_split

_SEED = 1
_CLASSNAMES = "classnames.txt"
_PARTS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
"""The names, in lower case, of the folders of each part."""


class ImageFolder(SplitDataset):
    """The folder ``DATASET.ROOT``, read in the first of these layouts that matches:

    1. ``split.json``, or one ``split_*.json``, with paths relative to ``images/`` if there is such
       a folder, else to the root.
    2. ``train/<class>/**``, ``test/<class>/**`` and optionally ``val/<class>/**``, or folders of
       similar names, such as ``valid``.
    3. ``<class>/**``: of each class 50 % for training, 20 % for validation, the rest for test; the
       same images in every run.

    In the layouts 2 and 3, the log counts and names the files that are not used. Class names are
    the folder names with blanks for ``_``, or those of ``classnames.txt``, with lines ``folder
    class name``.
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
        parts = _part_folders(root)
        split = _from_parts(root, parts) if parts else _from_classes(root)
        check_classes(split, str(root))
        if len({item.label for item in split.train}) == 1:
            raise UserError(
                f"{root} has one class, {split.train[0].classname!r}; make a folder for each "
                "class, and give the folder of these folders"
            )
        _say_what_is_not_used(root, {item.path for part in split for item in part})
        return split


def _part_folders(root: Path) -> dict[str, Path]:
    """Return the folder of each part that is there; none in the layout ``<class>/**``."""
    found: dict[str, Path] = {}
    for folder in sorted(filter(Path.is_dir, root.iterdir())):
        for part, names in _PARTS.items():
            if folder.name.lower() in names:
                other = found.setdefault(part, folder)
                if other != folder:
                    raise UserError(
                        f"{root} has two folders for {part}, {other.name} and {folder.name}: join "
                        "them, or rename one"
                    )
    for first, second in itertools.combinations(found.values(), 2):
        if first.samefile(second):
            raise UserError(f"{first} and {second} are the same folder: give each part its own")
    for part in ("train", "test"):
        if found and part not in found:
            raise UserError(
                f"{root} has a folder {next(iter(found.values())).name} but no folder {part}; add "
                "one, or rename the folder if it is a class (classnames.txt gives the name)"
            )
    return found


def _say_what_is_not_used(root: Path, used: set[str]) -> None:
    images, others = files_in(root)
    left: dict[str, list[str]] = defaultdict(list)
    for path in (*images, *others):
        if path not in used and path != _CLASSNAMES and not path.startswith("split_fewshot/"):
            left[PurePosixPath(path).suffix or "no suffix"].append(path)
    if left:
        kinds = (f"{len(paths)} {kind} ({_first(paths)})" for kind, paths in sorted(left.items()))
        total = sum(map(len, left.values()))
        print(f"Note: {total} file(s) in {root} are not used: {'; '.join(kinds)}")


def _first(paths: list[str]) -> str:
    return ", ".join([*paths[:3], *(["…"] if len(paths) > 3 else [])])


def _classes(parent: Path, root: Path) -> dict[str, tuple[int, str]]:
    """Return label and class name of each class folder in ``parent``, by the folder's name."""
    folders = [folder.name for folder in class_folders(parent)]
    file = root / _CLASSNAMES
    if file.exists():
        names = read_classnames(file, folders)
    else:
        names = {folder: as_words(folder) for folder in folders}
    for folder in folders:
        if folder not in names:
            raise UserError(f"{file} has no line for the folder {parent / folder}; add one")
    twins = first_twins([names[folder] for folder in folders])
    if twins:
        first, second = (folders[place] for place in twins)
        raise UserError(
            f"the class folders {first!r} and {second!r} in {parent} have the same class name to "
            f"CLIP, {names[second]!r}: join the folders, or write other names in {file}"
        )
    return {folder: (label, names[folder]) for label, folder in enumerate(folders)}


def _images(folder: Path, root: Path) -> list[str]:
    images, _ = files_in(folder)
    if not images:
        raise no_images(folder)
    return [(folder / name).relative_to(root).as_posix() for name in images]


def _from_parts(root: Path, folders: dict[str, Path]) -> Split:
    classes = _classes(folders["train"], root)
    split = Split([], [], [])
    for part, parent in folders.items():
        for folder in class_folders(parent):
            if folder.name not in classes:
                raise UserError(
                    f"the class folder {folder} has no counterpart in {folders['train']}"
                )
            items = (Item(path, *classes[folder.name]) for path in _images(folder, root))
            getattr(split, part).extend(items)
    return split


def _from_classes(root: Path) -> Split:
    split = Split([], [], [])
    classes = _classes(root, root)
    for folder in class_folders(root):
        items = [Item(path, *classes[folder.name]) for path in _images(folder, root)]
        if len(items) < 4:
            raise UserError(
                f"the class folder {folder} needs at least 4 images, but has {len(items)}: add "
                "images, or give as --root the folder that holds the class folders"
            )
        # With a seed for each class, further classes do not change the division of the others.
        of_class = divide(items, random.Random(f"{_SEED} {folder.name}"))
        for part, more in zip(split, of_class, strict=True):
            part.extend(more)
    return split

"""A user's own images: ``DATASET.NAME ImageFolder``, with ``DATASET.ROOT`` the image folder."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from pathlib import Path, PurePosixPath

from ..encoders.class_names import as_words
from ..encoders.clip_models import first_twins
from ..errors import UserError
from ..files.images import files_in, is_image_name
from .class_folders import NOT_CLASSES, class_folders, no_images, read_classnames
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
        files = _split_files(root)
        if len(files) == 1:
            if (root / "images").is_dir():
                self.images, self.image_dir = "images", root / "images"
            return read_split(files[0])
        if files:
            names = ", ".join(file.name for file in files)
            raise UserError(f"{root} has several splits ({names}); rename one to split.json")
        _check_not_inside(root)
        parts = _part_folders(root)
        split = _from_parts(root, parts) if parts else _from_classes(root)
        check_classes(split, str(root))
        if len({item.label for item in split.train}) == 1:
            raise UserError(
                f"{root} has one class, {split.train[0].classname!r}; make a folder for each "
                "class, and give the folder of these folders"
            )
        paths = {item.path for part in split for item in part}
        _say_what_is_a_class(root, paths, 1 + bool(parts))
        _say_what_is_not_used(root, paths)
        return split


def is_image_folder(root: Path) -> bool:
    """Tell whether ``root`` has the layout ``<class>/*``, where each further folder is a class.

    A folder of data sets has not: the images of a data set are further down.
    """
    folders = [at for at in _folders_in(root) if at.name not in NOT_CLASSES and at.name[0] != "."]
    if len(folders) < 2 or _split_files(root) or any(map(_part, folders)):
        return False
    return all(any(is_image_name(file.name) for file in at.glob("*")) for at in folders)


def _split_files(root: Path) -> list[Path]:
    """Return ``split.json``, if it is there, or all ``split_*.json``."""
    exact = root / "split.json"
    return [exact] if exact.exists() else sorted(root.glob("split_*.json"))


def _folders_in(folder: Path) -> list[Path]:
    return sorted(filter(Path.is_dir, folder.glob("*")))  # none in a folder that cannot be read


def _part(folder: Path) -> str:
    """Return the part of a split that a folder's name says, or an empty string."""
    return next((part for part, names in _PARTS.items() if folder.name.lower() in names), "")


def _check_not_inside(root: Path) -> None:
    """Check that ``root`` is not one part of a split: it would be divided into another split."""
    above, classes = root.parent, {folder.name for folder in _folders_in(root)}
    if root.name == "images" and len(_split_files(above)) == 1:
        raise UserError(f"{root} has its split in {_split_files(above)[0]}: give --root {above}")
    for other in _folders_in(above) if _part(root) else ():
        is_another = _part(other) not in ("", _part(root))
        if is_another and classes & {folder.name for folder in _folders_in(other)}:
            raise UserError(f"{root} and {other} are parts of one split: give --root {above}")


def _check_class(folder: Path) -> None:
    """Check that a class folder is no image folder: the split in it would be ignored."""
    if {"train", "test"} <= {_part(inner) for inner in _folders_in(folder)}:
        raise UserError(
            f"the class folder {folder} has folders for train and test: give --root {folder} if "
            "its classes are in these, or move them above the class folders (train/<class>)"
        )
    if _split_files(folder):
        raise UserError(
            f"the class folder {folder} has a split, {_split_files(folder)[0].name}: give --root "
            f"{folder} if it holds your images; move the folder away if it is another data set; "
            "else remove the file"
        )


def _say_what_is_a_class(root: Path, paths: set[str], depth: int) -> None:
    """Say so if no class folder has images of its own: ``root`` may be one folder too high."""
    if all(path.count("/") > depth for path in paths):
        first = PurePosixPath(min(paths)).parts[: depth + 1]
        print(
            f"Note: all images in {root} are in sub-folders of the class folders, such as "
            f"{'/'.join(first)}: {first[-2]!r} is the class"
        )


def _part_folders(root: Path) -> dict[str, Path]:
    """Return the folder of each part that is there; none in the layout ``<class>/**``."""
    found: dict[str, Path] = {}
    for folder in _folders_in(root):
        part = _part(folder)
        other = found.setdefault(part, folder) if part else folder
        if other != folder:
            raise UserError(
                f"{root} has two folders for {part}, {other.name} and {folder.name}: join them, or "
                "rename one"
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
    used |= {str(folder) for path in used for folder in PurePosixPath(path).parents}  # links
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
    lost = [folder for folder in folders if folder not in names]
    if lost:
        unknown = [name for name in names if name not in folders]
        other = f"; there is no folder {_first(unknown)}" if unknown else ""
        raise UserError(f"{file} has no line for {_first(lost)} in {parent}; add one{other}")
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
        _check_class(folder)
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

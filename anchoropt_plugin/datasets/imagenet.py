"""Readers of ImageNet and of the four test sets with its class names."""

from __future__ import annotations

import random
from pathlib import Path

from ..errors import UserError
from .class_folders import class_folders, image_names, read_classnames
from .public_pickles import read_public_pickle
from .splits import Item, Split


def read_imagenet(dataset_dir: Path, image_dir: Path, _: random.Random) -> Split:
    """Read ``train/<wnid>/*`` and ``val/<wnid>/*``, or public code's ``preprocessed.pkl``.

    The images of ``val`` are the test part; the validation part is empty.
    """
    pickled = dataset_dir / "preprocessed.pkl"
    if pickled.is_file():
        print(f"Images are read from the list {pickled}")
        parts = read_public_pickle(pickled, dataset_dir, image_dir)
        return Split(parts["train"], [], parts.get("test", []))
    train = _read_folders(dataset_dir, image_dir, "train/")
    test = _read_folders(dataset_dir, image_dir, "val/")
    return Split(train, [], test)


def read_test_folders(dataset_dir: Path, image_dir: Path, _: random.Random) -> Split:
    """Read ``<wnid>/*``, labels in the order of the folders: ImageNet-A, -R and -Sketch."""
    items = _read_folders(dataset_dir, image_dir, "")
    return Split(items, [], items)


def read_numbered_folders(dataset_dir: Path, image_dir: Path, _: random.Random) -> Split:
    """Read ``0/*``, ``1/*`` …, one folder for each line of ``classnames.txt``: ImageNetV2."""
    names = list(_classnames(dataset_dir).values())
    there = {folder.name for folder in class_folders(image_dir)}
    wanted = [str(label) for label in range(len(names))]
    different = sorted(there.symmetric_difference(wanted))
    if different:
        raise UserError(
            f"{image_dir} should have the folders 0 to {len(names) - 1}, one for each line of "
            f"classnames.txt; {', '.join(different[:3])} is missing or not expected"
        )
    items = [
        Item(f"{folder}/{image}", label, names[label])
        for label, folder in enumerate(wanted)
        for image in image_names(image_dir / folder)
    ]
    return Split(items, [], items)


def _read_folders(dataset_dir: Path, image_dir: Path, part: str) -> list[Item]:
    folders = class_folders(image_dir / part)
    names = _classnames(dataset_dir)
    for folder in folders:
        if folder.name not in names:
            raise UserError(f"classnames.txt has no line for the folder {folder}; add one")
    return [
        Item(f"{part}{folder.name}/{image}", label, names[folder.name])
        for label, folder in enumerate(folders)
        for image in image_names(folder)
    ]


def _classnames(dataset_dir: Path) -> dict[str, str]:
    folders = dict.fromkeys((dataset_dir, dataset_dir.parent / "imagenet"))
    for folder in folders:
        path = folder / "classnames.txt"
        if path.is_file():
            return read_classnames(path, [])  # the names of these folders have no blanks
    looked = " or in ".join(map(str, folders))
    raise UserError(f"ImageNet's classnames.txt is missing: put it in {looked}")

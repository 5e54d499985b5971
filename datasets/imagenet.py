"""Readers of ImageNet and of the four test sets that share its class names."""

from __future__ import annotations

import random
from pathlib import Path

from anchoropt_plugin.errors import UserError

from .class_folders import class_folders, pictures, read_classnames
from .public_pickles import read_public_pickle
from .splits import Item, Split


def read_imagenet(dataset_dir: Path, image_dir: Path, _: random.Random) -> Split:
    """``train/<wnid>/*`` and ``val/<wnid>/*``, or public code's list of them where it left one.

    Pictures for test are those of ``val``; there are none for validation alone.
    """
    pickled = dataset_dir / "preprocessed.pkl"
    if pickled.is_file():
        print(f"Pictures are those in {pickled}")
        parts = read_public_pickle(pickled, dataset_dir, image_dir)
        return Split(parts["train"], [], parts.get("test", []))
    train = _read_folders(dataset_dir, image_dir, "train/")
    test = _read_folders(dataset_dir, image_dir, "val/")
    return Split(train, [], test)


def read_test_folders(dataset_dir: Path, image_dir: Path, _: random.Random) -> Split:
    """``<wnid>/*``, labels in the order of the folders there: ImageNet-A, -R and -Sketch."""
    items = _read_folders(dataset_dir, image_dir, "")
    return Split(items, [], items)


def read_numbered_folders(dataset_dir: Path, image_dir: Path, _: random.Random) -> Split:
    """``0/*``, ``1/*`` and so on, one for each line of ``classnames.txt``: ImageNetV2."""
    names = list(_classnames(dataset_dir).values())
    there = {folder.name for folder in class_folders(image_dir)}
    wanted = [str(label) for label in range(len(names))]
    different = sorted(there.symmetric_difference(wanted))
    if different:
        raise UserError(
            f"{image_dir} should have the folders 0 to {len(names) - 1}, one for each line of "
            f"classnames.txt; {', '.join(different[:3])} is missing or too much"
        )
    items = [
        Item(f"{folder}/{picture}", label, names[label])
        for label, folder in enumerate(wanted)
        for picture in pictures(image_dir / folder)
    ]
    return Split(items, [], items)


def _read_folders(dataset_dir: Path, image_dir: Path, part: str) -> list[Item]:
    folders = class_folders(image_dir / part)
    names = _classnames(dataset_dir)
    for folder in folders:
        if folder.name not in names:
            raise UserError(f"classnames.txt has no line for the folder {folder}")
    return [
        Item(f"{part}{folder.name}/{picture}", label, names[folder.name])
        for label, folder in enumerate(folders)
        for picture in pictures(folder)
    ]


def _classnames(dataset_dir: Path) -> dict[str, str]:
    folders = dict.fromkeys((dataset_dir, dataset_dir.parent / "imagenet"))
    for folder in folders:
        path = folder / "classnames.txt"
        if path.is_file():
            return read_classnames(path, [])  # no blanks in the names of these folders
    looked = " and in ".join(map(str, folders))
    raise UserError(f"there is no classnames.txt of ImageNet: looked for it in {looked}")

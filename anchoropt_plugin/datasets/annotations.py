"""Readers of the public data sets' annotations, one for each format.

Each reader takes the data set's folder, its image folder and a random number generator, and returns
the split that public CoOp makes. The images of a folder are sorted by name; in public code they
have the file system's order, which differs between machines.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from scipy.io import loadmat

from ..errors import UserError
from ..files.readers import read_json
from .class_folders import class_folders, image_names, numbered_lines
from .divisions import divide, hold_out
from .splits import Item, Split


def read_class_folders(
    _: Path,
    image_dir: Path,
    rng: random.Random,
    ignored: tuple[str, ...] = (),
    renamed: Mapping[str, str] | None = None,
) -> Split:
    """Read ``<class>/*``, labels in the order of folder names: Caltech101, DTD, EuroSAT, Food101.

    Args:
        ignored: the folders that are not classes.
        renamed: class names by folder, for those that differ from the folder's name.
    """
    folders = [folder for folder in class_folders(image_dir) if folder.name not in ignored]
    items = [
        Item(f"{folder.name}/{name}", label, (renamed or {}).get(folder.name, folder.name))
        for label, folder in enumerate(folders)
        for name in image_names(folder)
    ]
    return divide(items, rng)


def read_pets(dataset_dir: Path, _: Path, rng: random.Random) -> Split:
    """Read lines ``Breed_name_12 label species breed``, labels from 1; lower-case class names."""

    def read(name: str) -> list[Item]:
        items = []
        for where, line in numbered_lines(dataset_dir / "annotations" / name):
            match line.split(" "):
                case [image, label, _, _] if label.isdecimal():
                    breed = image.rpartition("_")[0].lower()
                    items.append(Item(f"{image}.jpg", int(label) - 1, breed))
                case _:
                    raise _unlike(where, line, "image label species breed")
        return items

    return hold_out(read("trainval.txt"), read("test.txt"), rng)


def read_cars(dataset_dir: Path, _: Path, rng: random.Random) -> Split:
    """Read Matlab files: ``annotations`` (``fname``, ``class`` from 1) and ``class_names``."""
    meta = dataset_dir / "devkit" / "cars_meta.mat"
    names = []
    for name in _variable(meta, "class_names"):
        *rest, year = str(name).split(" ")
        names.append(" ".join([year, *rest]))

    def read(folder: str, path: Path) -> list[Item]:
        rows = _variable(path, "annotations")
        if not {"fname", "class"} <= set(rows.dtype.names or ()):
            raise UserError(
                f"{path}: the annotations have no fname and class; download the file again"
            )
        labels = _labels(rows["class"], path)
        if not all(0 <= label < len(names) for label in labels):
            raise UserError(f"{path} has classes beyond the {len(names)} of {meta}")
        return [
            Item(f"{folder}/{file}", label, names[label])
            for file, label in zip(rows["fname"], labels, strict=True)
        ]

    train = read("cars_train", dataset_dir / "devkit" / "cars_train_annos.mat")
    test = read("cars_test", dataset_dir / "cars_test_annos_withlabels.mat")
    return hold_out(train, test, rng)


def read_flowers(dataset_dir: Path, _: Path, rng: random.Random) -> Split:
    """Read a Matlab row ``labels`` from 1 for ``image_00001.jpg`` …, and a json of class names."""
    path = dataset_dir / "cat_to_name.json"
    names = read_json(path)
    if not isinstance(names, dict):
        raise UserError(f'{path} is not {{"1": class name, ...}}')
    mat = dataset_dir / "imagelabels.mat"
    items = [
        Item(f"image_{number:05d}.jpg", label, str(_known(names, str(label + 1), str(mat), path)))
        for number, label in enumerate(_labels(_variable(mat, "labels"), mat), start=1)
    ]
    return divide(items, rng)


def read_aircraft(dataset_dir: Path, _: Path, __: random.Random) -> Split:
    """Read lines ``image variant`` of each part; labels are line numbers of ``variants.txt``."""
    variants = dataset_dir / "variants.txt"
    labels = {line: label for label, (_, line) in enumerate(numbered_lines(variants))}

    def read(part: str) -> list[Item]:
        items = []
        for where, line in numbered_lines(dataset_dir / f"images_variant_{part}.txt"):
            image, _, variant = line.partition(" ")
            items.append(Item(f"{image}.jpg", _known(labels, variant, where, variants), variant))
        return items

    return Split(read("train"), read("val"), read("test"))


def read_sun(dataset_dir: Path, _: Path, rng: random.Random) -> Split:
    """Read lines ``/a/airfield/indoor/image.jpg`` of the class "indoor airfield"."""
    classes = dataset_dir / "ClassName.txt"
    labels = {line[1:]: label for label, (_, line) in enumerate(numbered_lines(classes))}

    def read(name: str) -> list[Item]:
        items = []
        for where, line in numbered_lines(dataset_dir / name):
            folder = line[1:].rpartition("/")[0]
            label = _known(labels, folder, where, classes)
            items.append(Item(line[1:], label, " ".join(reversed(folder.split("/")[1:]))))
        return items

    return hold_out(read("Training_01.txt"), read("Testing_01.txt"), rng)


def read_ucf(dataset_dir: Path, _: Path, rng: random.Random) -> Split:
    """Read lines ``ApplyLipstick/video.avi`` of the frame ``Apply_Lipstick/video.jpg``."""
    lists = dataset_dir / "ucfTrainTestlist"
    labels = {}
    for where, line in numbered_lines(lists / "classInd.txt"):
        number, action = line.partition(" ")[::2]
        if not (number.isdecimal() and action):
            raise _unlike(where, line, "label action")
        labels[action] = int(number) - 1

    def read(name: str) -> list[Item]:
        items = []
        for where, line in numbered_lines(lists / name):
            match line.split(" ")[0].split("/"):
                case [action, video]:
                    label = _known(labels, action, where, lists / "classInd.txt")
                    classname = "_".join(re.findall("[A-Z][^A-Z]*", action))
                    frame = PurePosixPath(video).with_suffix(".jpg")
                    items.append(Item(f"{classname}/{frame}", label, classname))
                case _:
                    raise _unlike(where, line, "action/video.avi")
        return items

    return hold_out(read("trainlist01.txt"), read("testlist01.txt"), rng)


def _variable(path: Path, name: str) -> Any:
    try:
        return np.atleast_1d(loadmat(path, variable_names=[name], squeeze_me=True)[name])
    except KeyError:
        raise UserError(f"{path} has no variable {name!r}; download the file again") from None
    except Exception as error:  # scipy raises a dozen different exceptions for broken files
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read {path}: {reason}; download the file again") from error


def _labels(values: Any, path: Path) -> list[int]:
    try:
        return [int(value) - 1 for value in values]
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: the labels are not numbers; download the file again") from error


def _known(known: Mapping[str, Any], name: str, where: str, source: Path) -> Any:
    if name not in known:
        raise UserError(f"{where}: {source} has no class {name!r}")
    return known[name]


def _unlike(where: str, line: str, form: str) -> UserError:
    return UserError(f"{where} is {line[:100]!r}, not {form!r}")

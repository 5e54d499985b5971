"""The split of a data set into images for training, validation and test, and into classes."""

from __future__ import annotations

import itertools
import json
import math
import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..encoders.clip_models import MARKS, first_twins, words_of
from ..errors import UserError, nearest
from ..files.readers import read_json


class Item(NamedTuple):
    """One image: its path relative to the image folder, its label and its class name."""

    path: str
    label: int
    classname: str


class Split(NamedTuple):
    """The images for training, validation and test."""

    train: list[Item]
    val: list[Item]
    test: list[Item]


def read_split(path: Path) -> Split:
    """Read ``{"train": [[relative path, label, class name], ...], "val": ..., "test": ...}``.

    Raises:
        UserError: a missing or malformed file, a split that :func:`check_classes` refuses, or two
            labels whose names are one to CLIP.
    """
    parts = read_json(path)
    if not isinstance(parts, dict) or not {"train", "test"} <= parts.keys():
        raise UserError(f'{path}: a split is {{"train": [...], "val": [...], "test": [...]}}')
    split = Split(*(items_of(parts.get(part, []), f"{path}: {part}") for part in Split._fields))
    check_classes(split, str(path))
    names = {item.label: item.classname for item in split.train}
    in_order = [names[label] for label in range(len(names))]
    twins = first_twins(in_order)
    if twins:
        first, second = (in_order[label] for label in twins)
        raise UserError(
            f"{path}: labels {twins[0]} and {twins[1]} are named {first!r} and {second!r}, which "
            "CLIP cannot tell apart: rename one, or join the two"
        )
    return split


def items_of(rows: Any, where: str) -> list[Item]:
    """Return ``[[relative path, label, class name], ...]`` as items.

    Raises:
        UserError: any other row; the message begins with ``where`` and the row's number.
    """
    if not isinstance(rows, list):
        raise UserError(f"{where} is not a list of [relative path, label, class name]")
    items = []
    for number, row in enumerate(rows):
        match row:
            case [str(path), int(label) | str(label), str(classname)] if _is_label(str(label)):
                items.append(Item(path, int(label), classname))
            case _:
                raise UserError(
                    f"{where}[{number}] is {json.dumps(row)[:200]}, "
                    "not [relative path, label from 0, class name]"
                )
    return items


def _is_label(text: str) -> bool:
    return text.isdecimal() and len(text) < 10


def check_classes(split: Split, where: str) -> None:
    """Check that labels are 0 ... n - 1, each with a training image and one name in all parts.

    Raises:
        UserError: other labels or names; the message begins with ``where``.
    """
    names: dict[int, str] = {}
    for item in itertools.chain(*split):
        known = names.setdefault(item.label, item.classname)
        if known != item.classname:
            raise UserError(
                f"{where}: label {item.label} has two names, {known!r} and {item.classname!r}"
            )
    for label, name in names.items():
        if len(name) > _LONGEST_NAME:
            raise UserError(
                f"{where}: the name of label {label}, {name[:50]!r} …, has {len(name)} characters: "
                f"shorten it to {_LONGEST_NAME} at most"
            )
        words = words_of(name)
        if not words or any(unicodedata.category(sign) in ("Cc", "Cs") for sign in name):
            raise UserError(
                f"{where}: the name of label {label}, {name!r}, is empty or has control characters"
            )
        if not set(MARKS).isdisjoint(words):
            raise UserError(
                f"{where}: the name of label {label}, {name!r}, has one of CLIP's own marks, "
                f"{' or '.join(MARKS)}: remove it"
            )
    if not split.train:
        raise UserError(f"{where}: there are no images for training")
    if not split.test:
        raise UserError(f"{where}: there are no images for test")
    trained = {item.label for item in split.train}
    for label in [*range(len(trained)), *sorted(names)]:
        if label not in trained:
            name = f" ({names[label]!r})" if label in names else ""
            raise UserError(f"{where}: label {label}{name} has no image for training")


def check_parts(split: Split, where: str) -> None:
    """Check that no image is in two parts of a split, or has two labels.

    Raises:
        UserError: an image is; the message begins with ``where``.
    """
    known: dict[str, tuple[str, int]] = {}
    for part, items in split._asdict().items():
        for item in items:
            name = os.path.normpath(item.path)
            other, label = known.setdefault(name, (part, item.label))
            if other != part:
                raise UserError(f"{where}: {name} is in {other} and in {part}: leave it in one")
            if label != item.label:
                raise UserError(
                    f"{where}: {name} has the labels {label} and {item.label}: leave one of them"
                )


def by_label(items: Iterable[Item]) -> list[list[Item]]:
    """Return the items of each label, in the order of each label's first item."""
    groups: dict[int, list[Item]] = {}
    for item in items:
        groups.setdefault(item.label, []).append(item)
    return list(groups.values())


def subsample(split: Split, which: str) -> Split:
    """Return the first half of the classes (``base``), the other half (``new``) or ``all``.

    If the number of classes is odd, base has one more. New labels start from 0.

    Raises:
        UserError: an unknown half, or fewer than two classes: each image of a single class would
            count as right.
    """
    choices = ("all", "base", "new")
    if which not in choices:
        raise UserError(
            f"DATASET.SUBSAMPLE_CLASSES is {which!r}{nearest(which, choices)}; "
            "choose all, base or new"
        )
    labels = sorted({item.label for item in split.train})
    middle = math.ceil(len(labels) / 2)
    chosen = {"all": labels, "base": labels[:middle], "new": labels[middle:]}[which]
    if len(labels) < 2:
        raise UserError("the data set has one class, which each image would have: add another")
    if len(chosen) < 2:
        raise UserError(
            f"DATASET.SUBSAMPLE_CLASSES {which} leaves one of {len(labels)} classes, which each "
            "image would have: choose all, or add classes"
        )
    if which == "all":
        return split
    print(f"SUBSAMPLE {which.upper()} CLASSES!")
    new_label = {label: number for number, label in enumerate(chosen)}
    return Split(
        *(
            [item._replace(label=new_label[item.label]) for item in part if item.label in new_label]
            for part in split
        )
    )


def check_class_split(name: str, data_set: type) -> None:
    """Check ``DATASET.CLASS_SPLIT``, a name in the ``class_splits`` of a data set, or empty.

    Raises:
        UserError: the data set has no split of this name.
    """
    known = getattr(data_set, "class_splits", {})
    if name and name not in known:
        choices = f"choose {', '.join(known)}" if known else "leave it empty"
        raise UserError(
            f"DATASET.CLASS_SPLIT is {name!r}{nearest(name, known)}, but {data_set.__name__} has "
            f"{'no such split' if known else 'no named splits'}: {choices}"
        )


def in_order(split: Split, names: Sequence[str]) -> Split:
    """Return a split with labels in the order of ``names``, the names of all classes.

    >>> split = Split([Item("a.png", 0, "a"), Item("b.png", 1, "b")], [], [])
    >>> [item.label for item in in_order(split, ["b", "a"]).train]
    [1, 0]
    """
    label = {name: number for number, name in enumerate(names)}
    return Split(*([item._replace(label=label[item.classname]) for item in part] for part in split))


_LONGEST_NAME = 1000
"""Most characters in a class name; CLIP reads fewer."""

"""The split of a data set: reading, few-shot draws, halves of the classes, checks."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import random
import stat
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
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


def check_drawn(drawn: Split, split: Split, shots: int, where: str) -> None:
    """Check that few-shot images belong to the same part of the split, with the same label.

    Raises:
        UserError: any other image, or more than ``shots`` of a class for training; the message
            begins with ``where``.
    """
    for part in ("train", "val"):
        known = {(item.path, item.label) for item in getattr(split, part)}
        for item in getattr(drawn, part):
            if (item.path, item.label) not in known:
                raise UserError(
                    f"{where}: {item.path} with label {item.label} is not in the split's part "
                    f"{part}; delete the file, the shots are drawn again"
                )
    check_classes(drawn, where)
    counts = Counter((item.label, item.classname) for item in drawn.train)
    for (_, name), count in counts.items():
        if count > shots:
            raise UserError(
                f"{where}: {count} images of the class {name}, more than the {shots} of "
                "DATASET.NUM_SHOTS; delete the file, the shots are drawn again"
            )


def check_drawn_by(saved: Mapping[str, Any], asked: Mapping[str, int], where: str) -> None:
    """Check that a file of few-shot images has the seed and the number of shots of its name.

    A file of an earlier version does not say them.

    Raises:
        UserError: the file was copied; the message begins with ``where``.
    """
    for name, value in asked.items():
        if saved.get(name, value) != value:
            raise UserError(
                f"{where}: drawn with {name} {saved[name]}, not {value}; delete the file, the "
                "shots are drawn again"
            )


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


def draw_shots(split: Split, shots: int, rng: random.Random) -> Split:
    """Draw ``shots`` training and ``min(shots, 4)`` validation images of each class.

    Classes are in the order of their first item; a class with fewer images keeps all of them. If
    ``rng`` has the seed that public code gives to ``random``, the draw equals public code's.
    """
    train = _draw(split.train, shots, rng)
    return split._replace(train=train, val=_draw(split.val, min(shots, 4), rng))


def _draw(items: Iterable[Item], shots: int, rng: random.Random) -> list[Item]:
    drawn: list[Item] = []
    for group in by_label(items):
        drawn += rng.sample(group, shots) if len(group) >= shots else group
    return drawn


def subsample(split: Split, which: str) -> Split:
    """Return the first half of the classes (``base``), the other half (``new``) or ``all``.

    If the number of classes is odd, base has one more. New labels start from 0.

    Raises:
        UserError: an unknown half, or a half without classes.
    """
    choices = ("all", "base", "new")
    if which not in choices:
        raise UserError(
            f"DATASET.SUBSAMPLE_CLASSES is {which!r}{nearest(which, choices)}; "
            "choose all, base or new"
        )
    if which == "all":
        return split
    labels = sorted({item.label for item in split.train})
    middle = math.ceil(len(labels) / 2)
    chosen = labels[:middle] if which == "base" else labels[middle:]
    if not chosen:
        raise UserError(
            "DATASET.SUBSAMPLE_CLASSES is new, but the data set has one class: choose all or base"
        )
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


def digest(split: Split) -> str:
    """Return a short hash of the images for training and validation."""
    text = json.dumps([split.train, split.val])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


_LONGEST_PART = 255
"""Most bytes in the name of a file or folder."""
_LONGEST_NAME = 1000
"""Most characters in a class name; CLIP reads fewer."""


def _can_be_a_path(name: str) -> bool:
    try:
        encoded = os.fsencode(name)
    except UnicodeEncodeError:
        if sys.getfilesystemencoding() != "utf-8":
            raise  # a fault of the process, not of the split
        return False
    if b"\0" in encoded:
        return False
    return len(encoded) <= _LONGEST_PART or all(
        len(part) <= _LONGEST_PART for part in encoded.split(b"/")
    )


def _mode(path: str) -> int:
    try:
        return os.lstat(path).st_mode
    except OSError:
        return 0


def check_files(split: Split, image_dir: Path, linked: Iterable[str] = ()) -> None:
    """Check that every image of a split is a file in the image folder.

    Args:
        split: the split, with paths relative to ``image_dir``.
        image_dir: the image folder, which may be a symlink.
        linked: the folders in ``image_dir`` that may be symlinks too.

    Raises:
        UserError: an absolute path, a path with ``..``, a symlink out of the folder, or missing
            images; the message has their number and the first three.
    """
    roots = [image_dir.resolve(), *((image_dir / folder).resolve() for folder in linked)]

    def is_inside(path: Path) -> bool:
        return any(path.resolve().is_relative_to(root) for root in roots)

    # Path objects for a million images would take a minute; checked folders are remembered.
    parents: dict[str, bool] = {}
    missing: list[str] = []
    used = dict.fromkeys(item.path for part in split for item in part)
    for name in used:
        if not _can_be_a_path(name):
            raise UserError(
                f"the path {name[:200]!r} in the split cannot be a file; correct the split"
            )
        if os.path.isabs(name) or (".." in name and ".." in Path(name).parts):  # noqa: PTH117
            raise UserError(f"the path {name[:200]!r} in the split leads out of {image_dir}")
        folder = name.rpartition("/")[0]
        if folder not in parents:
            parents[folder] = is_inside(image_dir / folder)
        path = f"{image_dir}/{name}"
        mode = _mode(path)
        if not parents[folder] or (stat.S_ISLNK(mode) and not is_inside(Path(path))):
            raise UserError(f"{path} is a symlink out of {image_dir}; copy the images into it")
        if not stat.S_ISREG(mode) and not Path(path).is_file():
            missing.append(path)
    if missing:
        first = ", ".join(missing[:3])
        raise UserError(
            f"{len(missing)} of {len(used)} images in the split are missing, such as {first}; "
            "check DATASET.ROOT, and that the data set is unpacked"
        )

"""The split of a data set: who is where, few-shot draws, halves of the classes, checks."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import random
import stat
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from anchoropt_plugin.errors import UserError, nearest
from anchoropt_plugin.files.readers import read_json


class Item(NamedTuple):
    """One picture: its path relative to the image folder, its label and its class name."""

    path: str
    label: int
    classname: str


class Split(NamedTuple):
    """The pictures for training, validation and test."""

    train: list[Item]
    val: list[Item]
    test: list[Item]


def read_split(path: Path) -> Split:
    """Read ``{"train": [[relative path, label, class name], ...], "val": ..., "test": ...}``.

    Raises:
        UserError: The file is missing or malformed, :func:`check_classes` refuses it, or two
            labels have one name.
    """
    parts = read_json(path)
    if not isinstance(parts, dict) or not {"train", "test"} <= parts.keys():
        raise UserError(f'{path}: a split is {{"train": [...], "val": [...], "test": [...]}}')
    split = Split(*(items_of(parts.get(part, []), f"{path}: {part}") for part in Split._fields))
    check_classes(split, str(path))
    labels: dict[str, int] = {}
    for item in split.train:
        other = labels.setdefault(item.classname, item.label)
        if other != item.label:
            raise UserError(
                f"{path}: labels {other} and {item.label} are both named {item.classname[:200]!r}: "
                "to CLIP that is one class; rename one, or join the two"
            )
    return split


def items_of(rows: Any, where: str) -> list[Item]:
    """Return ``[[relative path, label, class name], ...]`` as items.

    Raises:
        UserError: A row is something else; it is named by its number, after ``where``.
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


def check_drawn(drawn: Split, split: Split, where: str) -> None:
    """Check that few-shot pictures are of the split's own part, with the label they have there.

    Raises:
        UserError: One is not; the message begins with ``where``.
    """
    for part in ("train", "val"):
        known = {(item.path, item.label) for item in getattr(split, part)}
        for item in getattr(drawn, part):
            if (item.path, item.label) not in known:
                raise UserError(
                    f"{where}: {item.path} with label {item.label} is not in the split's part "
                    f"{part}; delete the file to have the shots drawn anew"
                )
    check_classes(drawn, where)


def check_classes(split: Split, where: str) -> None:
    """Check that labels are 0 ... n - 1, each with a training picture and one name in all parts.

    Raises:
        UserError: They are not; the message begins with ``where``.
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
                f"{where}: the name of label {label}, {name[:50]!r} …, has {len(name)} letters: "
                f"shorten it to {_LONGEST_NAME} at most"
            )
        if not name.strip() or any(unicodedata.category(sign) in ("Cc", "Cs") for sign in name):
            raise UserError(
                f"{where}: the name of label {label}, {name!r}, is empty or has control characters"
            )
    if not split.train:
        raise UserError(f"{where}: there are no pictures for training")
    if not split.test:
        raise UserError(f"{where}: there are no pictures for test")
    trained = {item.label for item in split.train}
    for label in [*range(len(trained)), *sorted(names)]:
        if label not in trained:
            name = f" ({names[label]!r})" if label in names else ""
            raise UserError(f"{where}: label {label}{name} has no picture for training")


def draw_shots(split: Split, shots: int, rng: random.Random) -> Split:
    """Draw ``shots`` training and ``min(shots, 4)`` validation pictures of each class.

    Labels come in the order in which they are first seen; a class with fewer pictures keeps
    all. The draw is that of the public code where ``rng`` is seeded as it seeds ``random``.
    """
    train = _draw(split.train, shots, rng)
    return split._replace(train=train, val=_draw(split.val, min(shots, 4), rng))


def _draw(items: Iterable[Item], shots: int, rng: random.Random) -> list[Item]:
    by_label: dict[int, list[Item]] = {}
    for item in items:
        by_label.setdefault(item.label, []).append(item)
    drawn: list[Item] = []
    for group in by_label.values():
        drawn += rng.sample(group, shots) if len(group) >= shots else group
    return drawn


def subsample(split: Split, which: str) -> Split:
    """Return the first half of the classes (``base``), the rest (``new``) or ``all``.

    Base has the extra class where their number is odd. Labels are counted from 0 again.

    Raises:
        UserError: There is no such half, or no class in it.
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
        raise UserError("DATASET.SUBSAMPLE_CLASSES new: one class has no second half")
    print(f"SUBSAMPLE {which.upper()} CLASSES!")
    new_label = {label: number for number, label in enumerate(chosen)}
    return Split(
        *(
            [item._replace(label=new_label[item.label]) for item in part if item.label in new_label]
            for part in split
        )
    )


def digest(split: Split) -> str:
    """Return a short text that differs where the pictures for training or validation do."""
    text = json.dumps([split.train, split.val])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


_LONGEST_PART = 255
"""Bytes in the name of a file or folder."""
_LONGEST_NAME = 1000
"""Letters in the name of a class; CLIP reads fewer."""


def _can_be_a_path(name: str) -> bool:
    try:
        encoded = os.fsencode(name)
    except UnicodeEncodeError:
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
    """Check that every picture is a file, and lies in the image folder.

    Args:
        split: Its paths are relative to ``image_dir``.
        image_dir: The image folder; it may be a symlink.
        linked: Folders in it that may be symlinks to other places as well.

    Raises:
        UserError: A path is absolute, has ``..`` or leads out of the folder by a symlink, or
            pictures are missing: their number and the first of them are named.
    """
    roots = [image_dir.resolve(), *((image_dir / folder).resolve() for folder in linked)]

    def is_inside(path: Path) -> bool:
        return any(path.resolve().is_relative_to(root) for root in roots)

    # A handful of folders hold a million pictures, for which Path objects would take a minute.
    parents: dict[str, bool] = {}
    missing: list[str] = []
    used = dict.fromkeys(item.path for part in split for item in part)
    for name in used:
        if not _can_be_a_path(name):
            raise UserError(
                f"the path {name[:200]!r} in the split can be no file's; mend the split"
            )
        if os.path.isabs(name) or (".." in name and ".." in Path(name).parts):  # noqa: PTH117
            raise UserError(f"the path {name[:200]!r} in the split leads out of {image_dir}")
        folder = name.rpartition("/")[0]
        if folder not in parents:
            parents[folder] = is_inside(image_dir / folder)
        path = f"{image_dir}/{name}"
        mode = _mode(path)
        if not parents[folder] or (stat.S_ISLNK(mode) and not is_inside(Path(path))):
            raise UserError(f"{path} is a symlink out of {image_dir}; copy the pictures into it")
        if not stat.S_ISREG(mode) and not Path(path).is_file():
            missing.append(path)
    if missing:
        first = ", ".join(missing[:3])
        raise UserError(
            f"{len(missing)} of {len(used)} pictures in the split are missing, such as {first}; "
            "is DATASET.ROOT right, and the data set unpacked?"
        )

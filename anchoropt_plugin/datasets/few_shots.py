"""The few-shot images of a split: drawn, or read from the file of an earlier draw."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files.readers import read_json, write_json
from .public_pickles import read_public_pickle
from .splits import Item, Split, by_label, check_classes, items_of

_PARTS = ("train", "val")


class FewShots:
    """The few-shot images of a data set, and the file that the next run of this seed reads.

    A file that public code wrote comes first. A file of ours that was drawn from another split is
    drawn again.

    Args:
        split: of the whole data set.
        shots: training images of each class; see :func:`draw_shots`.
        seed: of the draw; if it is negative, nothing is read from, or written to, a file of ours.
        rng: the generator that draws.
        dataset_dir, image_dir: the folders of the data set and of its images.

    Attributes:
        split: its parts for training and validation are the few-shot images.

    Raises:
        UserError: a file that is malformed, or has other images than a draw of this split can have.
    """

    def __init__(
        self,
        split: Split,
        shots: int,
        seed: int,
        rng: random.Random,
        dataset_dir: Path,
        image_dir: Path,
    ) -> None:
        stem = dataset_dir / "split_fewshot" / f"shot_{shots}-seed_{seed}"
        public, self._path = stem.with_name(f"{stem.name}.pkl"), stem.with_name(f"{stem.name}.json")
        self._content: dict[str, Any] = {}
        if public.is_file():
            print(f"Few-shot images are read from {public}")
            parts = read_public_pickle(public, dataset_dir, image_dir)
            self.split = split._replace(**{part: parts[part] for part in _PARTS if part in parts})
            check_drawn(self.split, split, shots, str(public))
            return
        asked = {"seed": seed, "shots": shots, "split": _digest(split)}
        saved = self._read(split, asked) if seed >= 0 else None
        self.split = saved or draw_shots(split, shots, rng)
        if seed >= 0 and not saved:
            train, val = self.split.train, self.split.val
            self._content = {**asked, "train": train, "val": val}

    def _read(self, split: Split, asked: Mapping[str, Any]) -> Split | None:
        path = self._path
        if not path.is_file():
            return None
        saved = read_json(path)
        if not (isinstance(saved, dict) and saved.get("split") == asked["split"]):
            print(f"{path} was drawn from another split; the images are drawn again")
            return None
        print(f"Few-shot images are read from {path}")
        train, val = (items_of(saved.get(part), f"{path}: {part}") for part in _PARTS)
        drawn = split._replace(train=train, val=val)
        check_drawn(drawn, split, asked["shots"], str(path))
        check_drawn_by(saved, asked, str(path))
        return drawn

    def write(self) -> None:
        """Write a new draw to its file; nothing is written into a read-only data set."""
        if not self._content:
            return
        try:
            write_json(self._content, self._path)
            print(f"The list of few-shot images is saved in {self._path}")
        except OSError:
            pass  # the same seed draws the same images again


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


def check_drawn_by(saved: Mapping[str, Any], asked: Mapping[str, Any], where: str) -> None:
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


def _digest(split: Split) -> str:
    """Return a short hash of the images for training and validation."""
    text = json.dumps([split.train, split.val])
    return hashlib.sha256(text.encode()).hexdigest()[:16]

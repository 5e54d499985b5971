"""Notes on a split that may be meant so, but mostly is not."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable

from dassl.data.datasets import Datum

from ..files.images import has_frames
from ..files.training_images import content_of
from .splits import Item


def note_few_shots(train: Iterable[Item], shots: int) -> None:
    """Print which classes have fewer than ``shots`` images for training."""
    images = Counter((item.label, item.classname) for item in train)
    few = [f"{name} {count}" for (_, name), count in images.items() if count < shots]
    if few:
        print(
            f"Note: {len(few)} of {len(images)} classes have fewer than {shots} images for "
            f"training, and train with all of them: {_first(few)}"
        )


def note_few_validation(val: Collection[Item], whole: Iterable[Item], shots: int) -> None:
    """Print how many images of the split's validation part, ``whole``, are drawn."""
    names = {item.classname for item in val}
    n = sum(item.classname in names for item in whole)
    if len(val) < n:
        print(
            f"Note: {len(val)} of {n} validation images are used: as in CoOp, DATASET.NUM_SHOTS "
            f"{shots} takes at most {min(shots, 4)} of each class (-1: all, for training, too)"
        )


def note_untested_classes(train: Iterable[Item], test: Iterable[Item]) -> None:
    """Print which classes have no image for test."""
    tested, names = {item.label for item in test}, {item.label: item.classname for item in train}
    never = [name for label, name in names.items() if label not in tested]
    if never:
        print(
            f"Note: {len(never)} of {len(names)} classes have no image for test, so the accuracy "
            f"does not count them: {_first(never)}"
        )


def note_frames(paths: Iterable[str]) -> None:
    """Print how many images have several frames."""
    found = [path for path in paths if has_frames(path)]
    if found:
        print(
            f"Note: {len(found)} image(s) have several frames or pages, the first is read: "
            f"{_first(found)}"
        )


def note_repeated(test: Iterable[Datum]) -> None:
    """Print how many test images are listed several times."""
    found = [path for path, n in Counter(image.impath for image in test).items() if n > 1]
    if found:
        print(
            f"Note: {len(found)} test image(s) are listed several times, and count as often: "
            f"{_first(found)}"
        )


def note_copies(train: Iterable[Datum], val: Iterable[Datum], test: Iterable[Datum]) -> None:
    """Print how many images have the same bytes as another one, where this spoils the accuracy."""
    trained, tested = ({image.impath for image in part} for part in (train, test))
    images = {image.impath: image for part in (train, val, test) for image in part}
    copies = _copies(images)
    pairs = _with_first(copies)
    told = {
        "image(s) for validation or test are copies of training images": [
            f"{path} of {first}"
            for path, first in pairs
            if first in trained and path not in trained
        ],
        "test image(s) are copies of other test images, and count again": [
            f"{path} of {first}"
            for path, first in _with_first([p for p in same if p in tested] for same in copies)
        ],
        "image(s) are copies of images with another label, which cannot both be right": [
            f"{path} ({images[path].classname}) of {first} ({images[first].classname})"
            for path, first in pairs
            if images[path].label != images[first].label
        ],
    }
    for what, found in told.items():
        if found:
            print(f"Note: {len(found)} {what}: {_first(found)}")


def _copies(paths: Iterable[str]) -> list[list[str]]:
    """Return the files that have the same bytes, in the order of ``paths``; two or more a list."""
    sizes: dict[int, list[str]] = defaultdict(list)
    for path in paths:
        sizes[os.path.getsize(path)].append(path)  # noqa: PTH202
    contents: dict[str, list[str]] = defaultdict(list)
    for same in sizes.values():
        for path in same if len(same) > 1 else ():
            contents[content_of(path)].append(path)
    return [same for same in contents.values() if len(same) > 1]


def _with_first(groups: Iterable[list[str]]) -> list[tuple[str, str]]:
    return sorted((path, group[0]) for group in groups for path in group[1:])


def _first(texts: list[str]) -> str:
    return ", ".join([*texts[:3], *(["…"] if len(texts) > 3 else [])])

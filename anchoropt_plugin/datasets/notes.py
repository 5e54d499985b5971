"""Notes on a split that may be meant so, but mostly is not."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable

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


def note_untested_classes(train: Iterable[Item], test: Iterable[Item]) -> None:
    """Print which classes have no image for test."""
    tested, names = {item.label for item in test}, {item.label: item.classname for item in train}
    never = [name for label, name in names.items() if label not in tested]
    if never:
        print(
            f"Note: {len(never)} of {len(names)} classes have no image for test, so the accuracy "
            f"does not count them: {_first(never)}"
        )


def note_copies(train: Iterable[str], others: Iterable[str]) -> None:
    """Print how many of ``others`` have the same bytes as a file in ``train``."""
    sizes = {path: os.path.getsize(path) for path in {*train, *others}}  # noqa: PTH202
    shared = {sizes[path] for path in train} & {sizes[path] for path in others}
    trained = {content_of(path): path for path in train if sizes[path] in shared}
    found = [
        f"{path} of {trained[content]}"
        for path in others
        if sizes[path] in shared and (content := content_of(path)) in trained
    ]
    if found:
        print(
            f"Note: {len(found)} images for validation or test are copies of training images: "
            f"{_first(found)}"
        )


def _first(texts: list[str]) -> str:
    return ", ".join([*texts[:3], *(["…"] if len(texts) > 3 else [])])

"""Which images a run was trained on: ``training_images.json`` in its output folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import UserError
from .atomic import write_text
from .readers import read_json

TRAINING_IMAGES = "training_images.json"


def digest(images: Iterable[Any]) -> str:
    """Return a short hash of the paths, labels and sizes in bytes of images.

    Paths count from the folder that all images share, so a data set may move.

    Args:
        images: each with ``impath`` and ``label``.
    """
    # Path objects for a million images would take long.
    found = sorted((os.path.abspath(image.impath), image.label) for image in images)  # noqa: PTH100
    start = len(os.path.commonpath([path for path, _ in found]))
    hashed = hashlib.sha256()
    for path, label in found:
        hashed.update(json.dumps([path[start:], label, _size(path)]).encode())
    return hashed.hexdigest()[:16]


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116
    except OSError:
        return 0


def write_training_images(folder: str | Path, images: str) -> None:
    """Write the ``digest`` of the training images into an output folder."""
    write_text(Path(folder, TRAINING_IMAGES), json.dumps({"digest": images}))


def check_same_images(folder: str | Path, images: str) -> None:
    """Check that the checkpoints in an output folder, if any, come from a run with these images.

    A folder without the file is accepted: an earlier version may have written it.

    Raises:
        UserError: they come from a run with other training images.
    """
    recorded = Path(folder, TRAINING_IMAGES)
    if not recorded.is_file() or not any(Path(folder).glob("*/checkpoint")):
        return
    if read_json(recorded) != {"digest": images}:
        raise UserError(
            f"{folder} holds a run with other training images, of the same class names: give the "
            "data set of that run, or another --output-dir"
        )

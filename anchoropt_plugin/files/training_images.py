"""Which images a run was trained on (``training_images.json``) and tested on."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
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


def digest_of_files(paths: Iterable[str]) -> str:
    """Return a short hash of the paths and sizes in bytes of images, as ``digest`` without labels.

    It is empty if an image is missing or has no path.
    """
    found = sorted(os.path.abspath(path) if path else "" for path in paths)  # noqa: PTH100
    sizes = [_size(path) for path in found]
    if not all(sizes):
        return ""
    start = len(os.path.commonpath(found))
    pairs = [[path[start:], size] for path, size in zip(found, sizes, strict=True)]
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()[:16]


def digest_of_names(names: Iterable[str]) -> str:
    """Return a short hash of class names in their order."""
    return hashlib.sha256(json.dumps(list(names)).encode()).hexdigest()[:16]


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116
    except OSError:
        return 0


def images_of(data_set: Any, part: str) -> dict[str, Any] | None:
    """Return what ``results.json`` says of the tested images; None for images without a path.

    Args:
        data_set: of the run.
        part: of the data set, ``"val"`` or ``"test"``.

    Returns:
        ``digest``; ``files``, the ``digest_of_files``; ``names``, the ``digest_of_names`` of the
        classes; and ``drawn``: whether the seed and the number of shots may have chosen the images.
    """
    images = getattr(data_set, part, None) or ()
    if not images or not all(isinstance(getattr(image, "impath", None), str) for image in images):
        return None
    drawn = part != "test" or bool(getattr(data_set, "is_drawn", True))
    files = digest_of_files(str(image.impath) for image in images)
    names = digest_of_names(getattr(data_set, "classnames", ()))
    return {"digest": digest(images), "files": files, "names": names, "drawn": drawn}


def images_per_class(data_set: Any) -> dict[str, int] | None:
    """Return the ``fewest`` and the ``most`` training images of a class, each file counted once.

    It is None for images without a path or a number as their label, as in users' own data sets.
    """
    images = getattr(data_set, "train_x", None) or ()
    found = [(getattr(one, "impath", None), getattr(one, "label", None)) for one in images]
    if not found or not all(isinstance(p, str) and isinstance(label, int) for p, label in found):
        return None
    counts = Counter(label for _, label in set(found)).values()
    return {"fewest": min(counts), "most": max(counts)}


def content_of(path: str | Path) -> str:
    """Return a short hash of the bytes of a file."""
    hashed = hashlib.sha256()
    with open(path, "rb") as file:  # noqa: PTH123  (a hundred thousand Paths take a second)
        while part := file.read(1 << 22):
            hashed.update(part)
    return hashed.hexdigest()[:16]


def trained_marks(data_set: Any) -> set[str]:
    """Return the marks by which ``check_not_trained`` knows the training images of a data set.

    It is empty for a published split, which is the same in every run.
    """
    trained: set[str] = set().union(*_marks(data_set, "train_x").values())
    if getattr(data_set, "are_own", False):
        # Copies that the run itself tests have been told (note_copies), and stay testable.
        trained -= {content_of(image.impath) for image in [*(data_set.val or ()), *data_set.test]}
    return trained


def _marks(data_set: Any, part: str) -> dict[str, set[str]]:
    """Return hashes of the images of a part, by path.

    The first is of the path, counted from the image folder, and of the content: the bytes of a
    user's own image, else its size alone. The second, of the bytes of an own image, is the same
    after a move.
    """
    own = getattr(data_set, "are_own", False)
    if not (own or getattr(data_set, "is_drawn", False)):
        return {}
    found: dict[str, set[str]] = {}
    for image in getattr(data_set, part) or ():
        path = str(image.impath)
        content = content_of(path) if own else _size(path)
        text = json.dumps([path.removeprefix(str(data_set.image_dir)), content])
        found[path] = {hashlib.sha256(text.encode()).hexdigest()[:16]}
        if isinstance(content, str):
            found[path].add(content)
    return found


def write_training_images(folder: str | Path, images: str, marked: Iterable[str] = ()) -> None:
    """Write a run's ``digest`` of the training images, and ``trained_marks``, into its folder."""
    content = {"digest": images, "images": sorted(marked)}
    write_text(Path(folder, TRAINING_IMAGES), json.dumps(content))


def recorded(folder: str | Path) -> dict[str, Any]:
    """Return what ``training_images.json`` holds; an empty dict if there is no such file.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    path = Path(folder, TRAINING_IMAGES)
    if not path.is_file():
        return {}
    match read_json(path):
        case {"digest": str()} as content:
            return dict(content)
    raise UserError(f"{path} does not hold a digest of training images: remove it")


def check_not_trained(folder: str | Path, data_set: Any, part: str) -> None:
    """Check that a test has no image that the run in an output folder was trained on.

    Raises:
        UserError: it has some: the data set was divided otherwise in the training, or images were
            moved since.
    """
    trained = set(recorded(folder).get("images", ()))
    tested = _marks(data_set, part) if trained else {}
    both = [path for path, marks in tested.items() if marks & trained]
    if both:
        raise UserError(
            f"{len(both)} of {len(tested)} images of this test, such as {both[0]}, are training "
            f"images of {folder}: its data set was divided otherwise, or the images were renamed, "
            "moved or copied since. Give the data set and the --seed of that run, or train again"
        )


def check_same_images(folder: str | Path, images: str) -> None:
    """Check that the checkpoints in an output folder, if any, come from a run with these images.

    A folder without the file is accepted: an earlier version may have written it.

    Raises:
        UserError: they come from a run with other training images.
    """
    there = recorded(folder)
    if there and any(Path(folder).glob("*/checkpoint")) and there.get("digest") != images:
        raise UserError(
            f"{folder} holds a run with other training images, of the same class names: give the "
            "data set of that run, or another --output-dir"
        )

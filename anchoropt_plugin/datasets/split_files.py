"""Check that the images of a split are files in the image folder."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable
from pathlib import Path

from ..errors import UserError
from .splits import Split

_LONGEST_PART = 255
"""Most bytes in the name of a file or folder."""


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

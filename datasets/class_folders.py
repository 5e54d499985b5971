"""Folders of pictures, one for each class, and the file that names them."""

from __future__ import annotations

import os
import re
from pathlib import Path

from anchoropt_plugin.errors import UserError
from anchoropt_plugin.files.readers import read_text

_PICTURES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_NOT_CLASSES = {"split_fewshot"}


def class_folders(parent: Path) -> list[Path]:
    """Return the class folders in ``parent`` in the order of their names.

    Raises:
        UserError: There is none, or no such folder.
    """
    if not parent.is_dir():
        raise UserError(f"the folder {parent} is missing; unpack the pictures there")
    folders = sorted(
        entry
        for entry in parent.iterdir()
        if entry.is_dir() and entry.name not in _NOT_CLASSES and not entry.name.startswith(".")
    )
    if not folders:
        raise UserError(f"{parent} has no class folders; put each class's pictures into its own")
    return folders


def pictures(folder: Path) -> list[str]:
    """Return the names of the pictures in a class folder, sorted.

    The order matters to every draw from them, and must not depend on the file system.

    Raises:
        UserError: There is none.
    """
    found = sorted(
        name
        for name in os.listdir(folder)  # noqa: PTH208  (ImageNet: a million Paths take seconds)
        if os.path.splitext(name)[1].lower() in _PICTURES and not name.startswith(".")  # noqa: PTH122
    )
    if not found:
        raise UserError(f"the class folder {folder} has no pictures; fill it or remove it")
    return found


def read_classnames(path: Path, folders: list[str]) -> dict[str, str]:
    """Return the class name of each folder, in the order of the lines ``folder class name``.

    Args:
        path: The file.
        folders: Folders that are there. Their names may have blanks; others end at the first.

    Raises:
        UserError: There is no such file, or a line without a class name.
    """
    known, names = set(folders), {}
    for number, line in enumerate(map(str.strip, read_text(path).splitlines()), start=1):
        if line:
            beginnings = [line[: blank.start()] for blank in re.finditer(" ", line)]
            folder = next(
                (folder for folder in reversed(beginnings) if folder in known),
                line.partition(" ")[0],
            )
            names[folder] = line.removeprefix(folder).strip()
            if not names[folder]:
                raise UserError(f"{path}, line {number}: no class name after {folder!r}")
    return names

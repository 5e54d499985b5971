"""Folders of images, one for each class, and the file of their class names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from anchoropt_plugin.errors import UserError
from anchoropt_plugin.files.readers import read_text

_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_NOT_CLASSES = {"split_fewshot"}


def class_folders(parent: Path) -> list[Path]:
    """Return the class folders in ``parent``, sorted by name.

    Raises:
        UserError: a missing folder, or one without class folders.
    """
    if not parent.is_dir():
        raise UserError(f"the folder {parent} is missing; unpack the images there")
    folders = sorted(
        entry
        for entry in parent.iterdir()
        if entry.is_dir() and entry.name not in _NOT_CLASSES and not entry.name.startswith(".")
    )
    if not folders:
        raise UserError(f"{parent} has no class folders; make a folder of images for each class")
    return folders


def image_names(folder: Path) -> list[str]:
    """Return the file names of the images in a class folder, sorted.

    Random draws depend on the order, so the order must not depend on the file system.

    Raises:
        UserError: a folder without images.
    """
    found = sorted(
        name
        for name in os.listdir(folder)  # noqa: PTH208  (ImageNet: a million Paths take seconds)
        if os.path.splitext(name)[1].lower() in _SUFFIXES and not name.startswith(".")  # noqa: PTH122
    )
    if not found:
        raise UserError(f"the class folder {folder} has no images; add some, or remove the folder")
    return found


def numbered_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the place ("file, line 3") and the text of each line that is not empty."""
    for number, line in enumerate(map(str.strip, read_text(path).splitlines()), start=1):
        if line:
            yield f"{path}, line {number}", line


def read_classnames(path: Path, folders: list[str]) -> dict[str, str]:
    """Return the class name of each folder, in the order of the lines ``folder class name``.

    Args:
        path: the file.
        folders: the existing folders, whose names may have blanks. The name of any other folder
            ends at the line's first blank.

    Raises:
        UserError: a missing file, or a line without a class name.
    """
    known, names = set(folders), {}
    for where, line in numbered_lines(path):
        beginnings = [line[: blank.start()] for blank in re.finditer(" ", line)]
        folder = next(
            (folder for folder in reversed(beginnings) if folder in known), line.partition(" ")[0]
        )
        names[folder] = line.removeprefix(folder).strip()
        if not names[folder]:
            raise UserError(f"{where}: there is no class name after {folder!r}; add one")
    return names

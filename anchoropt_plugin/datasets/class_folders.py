"""Folders of images, one for each class, and the file of their class names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from ..errors import UserError
from ..files.images import is_image_name
from ..files.readers import read_text

NOT_CLASSES = {"split_fewshot"}


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
        if entry.is_dir() and entry.name not in NOT_CLASSES and not entry.name.startswith(".")
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
    # ImageNet: a million Paths take seconds.
    found = sorted(filter(is_image_name, os.listdir(folder)))  # noqa: PTH208
    if not found:
        raise no_images(folder)
    return found


def no_images(folder: Path) -> UserError:
    """Return the error of a class folder without images."""
    return UserError(f"the class folder {folder} has no images; add some, or remove the folder")


def numbered_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the place ("file, line 3") and the text of each line that is not empty."""
    for number, line in enumerate(map(str.strip, read_text(path).splitlines()), start=1):
        if line:
            yield f"{path}, line {number}", line


def read_classnames(path: Path, folders: list[str]) -> dict[str, str]:
    """Return the class name of each folder, in the order of the lines ``folder class name``.

    Between the two is a blank, a tab or a comma; a class name may have more of them.

    Args:
        path: the file.
        folders: the existing folders, whose names may have blanks and commas. The name of any other
            folder ends at the line's first blank, tab or comma.

    Raises:
        UserError: a missing file, a line without a class name, or two names of one folder.
    """
    known: set[str] = set(folders)
    names: dict[str, str] = {}
    for where, line in numbered_lines(path):
        beginnings = [line[: between.start()] for between in re.finditer(r"[ \t,]", line)]
        folder = next(
            (folder for folder in reversed(beginnings) if folder in known),
            beginnings[0] if beginnings else line,
        )
        name = re.sub(r"^\s*,?\s*", "", line.removeprefix(folder))
        if not name:
            raise UserError(f"{where}: there is no class name after {folder!r}; add one")
        if names.setdefault(folder, name) != name:
            raise UserError(
                f"{where}: the folder {folder!r} has two names, {names[folder]!r} and {name!r}; "
                "remove one line"
            )
    return names

"""Read texts and json; a broken file raises a ``UserError`` of one line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ..errors import UserError
from .atomic import write_text

_NO_NAME = re.compile(
    r"^[#\[\]{}\"]|^'.*'$|\t|[,;]$"  # a comment, json, quotes, columns
    r"|[^\d\s][,;]\S|[,;][^\d\s]"  # columns of a csv: a name has a blank behind its comma
    r"|^n\d{8}\b"  # the folder in a line of ImageNet's classnames.txt
)
"""What a line has that is not a class name alone; "1,000 island" is one."""


def read_text(fpath: str | Path) -> str:
    """Return the content of a text file.

    Raises:
        UserError: a missing file, or a file not in UTF-8.
    """
    try:
        return Path(fpath).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot open {fpath}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{fpath} is not text in UTF-8: save it as UTF-8") from error


def read_names(fpath: str | Path) -> list[str]:
    """Return the names in a text file, one per line; empty lines are skipped.

    Raises:
        UserError: a missing file, a file not in UTF-8, or a line of another format.
    """
    names = []
    for number, line in enumerate(map(str.strip, read_text(fpath).splitlines()), start=1):
        if _NO_NAME.search(line):
            raise UserError(
                f"{fpath}, line {number}: {line[:100]!r} is not the name of a class alone: write "
                "one name a line, without quotes, brackets, comments and further columns"
            )
        if line:
            names.append(line)
    return names


def read_json(fpath: str | Path) -> Any:
    """Return the content of a json file.

    Raises:
        UserError: a missing or malformed file; the message names the line.
    """
    try:
        return json.loads(read_text(fpath), object_pairs_hook=each_key_once)
    except json.JSONDecodeError as error:
        raise UserError(f"{fpath}, line {error.lineno}: not valid json: {error.msg}") from error
    except (RecursionError, ValueError) as error:  # too deeply nested, too many digits
        raise UserError(f"{fpath}: not valid json: {error}") from error


def each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the dict of an object in a json file; json would keep the last of equal keys.

    Raises:
        ValueError: a key is there twice.
    """
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} is there twice")
    return content


def json_or_none(text: str) -> Any:
    """Return the content of a json text, or None for another text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # the latter: too deeply nested
        return None


def write_json(obj: Any, fpath: str | Path) -> None:
    """Write ``obj`` as json, whole or not at all; create the folder if it is missing."""
    path = Path(fpath)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(obj, indent=4))

"""The files of a run: what was trained (``anchoropt.json``), and how positions moved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files.atomic import atomic_write
from ..files.readers import read_json, read_text

RECORD = "anchoropt.json"
"""Written beside a model's checkpoints: which classes it was trained on, and with what settings."""


READ_AT_TEST = ("position", "position_task", "pooling", "sample_at_eval", "anchor_len")
"""Settings without which a checkpoint means something else."""


HISTORY = "position.jsonl"
"""Written into the output folder: after each epoch a line with the relaxed position matrix."""


def read_record(path: Path) -> dict[str, Any]:
    """Return what an ``anchoropt.json`` holds.

    Raises:
        UserError: it cannot be read, or is something else.
    """
    record = read_json(path)
    match record:
        case {"backbone": str(), "classes": list(classes), "settings": dict()} if all(
            isinstance(name, str) for name in classes
        ):
            return dict(record)
    raise UserError(f"{path} is not the record of a run: delete it or copy it anew")


def read_history(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a ``position.jsonl``: epoch (from 1), temperature, relaxed matrix.

    Raises:
        UserError: it cannot be read, or is something else; the line is named.
    """
    entries = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        match entry:
            case {"epoch": int(), "temperature": int() | float(), "P": list()}:
                entries.append(dict(entry))
            case _:
                raise UserError(f"{path}, line {number}: not an epoch's matrix: remove the file")
    return entries


def _write(text: str, path: Path) -> None:
    with atomic_write(path) as file:
        file.write(text.encode())

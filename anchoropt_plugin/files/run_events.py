"""The results and the events of a run: files in its output folder that other programs read.

Both files are written whole or not at all, by the main process, and only into a folder that exists:
a trainer that is used from Python needs no output folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..process.distributed import is_main
from .atomic import write_text
from .predictions import PREDICTIONS
from .readers import json_or_none, read_json, read_text

RESULTS = "results.json"
"""The numbers of the test that a run ends with."""

_DIGEST = "digest"

EVENTS = "events.jsonl"
"""What happened in a training, one JSON object a line: ``{"event": "epoch", "epoch": 1, …}``."""


def append_event(folder: str | Path, kind: str, /, **values: Any) -> None:
    """Append an event to ``events.jsonl``, unless the file has the same event already.

    Args:
        folder: the output folder.
        kind: ``"epoch"``, with the values epoch (from 1) and epochs, or another word.
        values: values that JSON can hold.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     append_event(folder, "anchors")
    ...     append_event(folder, "epoch", epoch=1, epochs=2, loss=0.5)
    ...     read_events(folder)
    [{'event': 'anchors'}, {'event': 'epoch', 'epoch': 1, 'epochs': 2, 'loss': 0.5}]
    """
    path = Path(folder, EVENTS)
    if path.parent.is_dir():
        line, lines = json.dumps({"event": kind, **values}), _complete_lines(path)
        if line not in lines:
            write_text(path, "\n".join([*lines, line, ""]))


def read_events(folder: str | Path) -> list[dict[str, Any]]:
    """Return the events of a run; an empty list if the folder has no ``events.jsonl``.

    The last event of each epoch and of each other kind counts. A last line without its end is
    ignored: a copy may have caught the file half written.

    Raises:
        UserError: the file cannot be read, or a line is no event; the message names the line.
    """
    path = Path(folder, EVENTS)
    last: dict[Any, dict[str, Any]] = {}
    for number, line in enumerate(_complete_lines(path), start=1):
        event = _parsed(line, f"{path}, line {number}")
        last[event["epoch"] if event["event"] == "epoch" else event["event"]] = event
    return list(last.values())


def rewind(folder: str | Path, epoch: int) -> None:
    """Remove the results and the later events of a folder, when a training starts or resumes.

    So a training folder has results only if its last training has ended.

    Args:
        folder: the output folder.
        epoch: the number of epochs in the checkpoint; 0 removes all events.

    Raises:
        UserError: the events cannot be read.
    """
    path = Path(folder, EVENTS)
    if not is_main():
        return
    for name in (RESULTS, PREDICTIONS):
        Path(folder, name).unlink(missing_ok=True)
    if path.exists():
        events = read_events(folder) if epoch else []
        done = [event for event in events if event.get("epoch", 0) <= epoch]
        write_text(path, "".join(f"{json.dumps(event)}\n" for event in done))


def write_results(folder: str | Path, results: Mapping[str, Any]) -> None:
    """Write ``results.json``, with a digest of its other entries."""
    if Path(folder).is_dir():
        content = {**results, _DIGEST: _digest(results)}
        write_text(Path(folder, RESULTS), json.dumps(content, indent=1) + "\n")


def model_of_test(
    folder: str | Path, model_dir: str | Path, epoch: int | None
) -> dict[str, str | int | None]:
    """Return the entry ``model`` of the ``results.json`` in ``folder``.

    Args:
        folder: the output folder of the test.
        model_dir: the output folder of the training; relative to ``folder`` in the entry, because
            both may be moved.
        epoch: of the checkpoint; None for the best one.
    """
    path = os.path.relpath(Path(model_dir).resolve(), Path(folder).resolve())
    return {"folder": Path(path).as_posix(), "epoch": epoch}


def unedited_results(folder: str | Path) -> dict[str, Any]:
    """Return what ``results.json`` holds, complete or not; an empty dict without the file.

    Raises:
        UserError: the file cannot be read, is no dict, or was edited after it was written.
    """
    path = Path(folder, RESULTS)
    results = read_json(path) if path.exists() else {}
    settings = ("settings", "training") if isinstance(results, dict) else ()
    if not settings or not all(isinstance(results.get(name, {}), dict) for name in settings):
        raise UserError(f"{path} does not hold the results of a test: remove it and test again")
    written = results.pop(_DIGEST, None)  # an earlier version wrote none
    if written not in (None, _digest(results)):
        raise UserError(f"{path} was edited after its test: remove it and test again")
    return results


def _digest(results: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(results, sort_keys=True).encode()).hexdigest()[:16]


def read_results(folder: str | Path) -> dict[str, Any]:
    """Return what ``results.json`` holds; an empty dict if there is no such file.

    Returns:
        ``split``, ``after_training`` (whether the test ended a training), ``total``, ``correct``
        and the evaluator's numbers in per cent: ``accuracy``, ``macro_f1``, …; ``images``, if
        known, with ``digest`` and ``drawn`` of the tested images.

    Raises:
        UserError: the file cannot be read, holds something else, or was edited.
    """
    path = Path(folder, RESULTS)
    if not path.exists():
        return {}
    match unedited_results(folder):
        case {
            "after_training": bool(),
            "total": int(),
            "correct": int(),
            "accuracy": int() | float(),
            "macro_f1": int() | float(),
        } as results if _are_images(results.get("images")):
            return dict(results)
    raise UserError(f"{path} does not hold the results of a test: remove it and test again")


def _are_images(value: Any) -> bool:
    match value:
        case None | {"digest": str(), "drawn": bool()}:
            return True
    return False


def _complete_lines(path: Path) -> list[str]:
    return read_text(path).split("\n")[:-1] if path.exists() else []


def _parsed(line: str, where: str) -> dict[str, Any]:
    event = json_or_none(line)
    match event:
        case {"event": "epoch", "epoch": int(), "epochs": int()}:
            return dict(event)
        case {"event": str(kind)} if kind != "epoch" and "epoch" not in event:
            return dict(event)
    raise UserError(f"{where}: not an event of a run: remove the file")

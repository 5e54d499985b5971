"""The results that a run printed into its log, in the lines of Dassl and CoOp."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..files.readers import read_text

_AFTER_TRAINING, _RESULT = "Finish training", "=> result"
_LINE = re.compile(r"^\* (\w+): ([\d.,eE+-]+?)%?$", re.MULTILINE)


def newest_log(folder: Path) -> Path | None:
    """Return the log of the last command that wrote into ``folder``; each command has its own."""
    logs = folder.glob("log.txt*")
    return max(logs, key=lambda path: (path.stat().st_mtime_ns, path.name), default=None)


def results_in(log: str, training: bool) -> dict[str, Any]:
    """Return the results of the last test in a log; an empty dict if there is none.

    Args:
        log: the text of the log.
        training: whether the test must follow a finished training: tests on validation images
            during the training have the same lines.

    Returns:
        ``total``, ``correct`` and the numbers in per cent: ``accuracy``, which is computed from the
        counts, as its line is rounded, ``macro_f1`` and others.

    >>> results_in("=> result\\n* total: 1,000\\n* correct: 918\\n* accuracy: 91.8%", False)
    {'total': 1000, 'correct': 918, 'accuracy': 91.8}
    """
    begin = _place_of(_AFTER_TRAINING, log) if training else 0
    at = _place_of(_RESULT, log)
    if begin < 0 or at < begin:
        return {}
    found = {name: float(number.replace(",", "")) for name, number in _LINE.findall(log[at:])}
    if not {"total", "correct", "accuracy"} <= found.keys():
        return {}
    total, correct = int(found["total"]), int(found["correct"])
    return {**found, "total": total, "correct": correct, "accuracy": 100 * correct / total}


def _place_of(line: str, log: str) -> int:
    """Return the place of the last line of a text that equals ``line``; −1 if there is none."""
    found = [match.start() for match in re.finditer(rf"^\s*{re.escape(line)}\s*$", log, re.M)]
    return found[-1] if found else -1


def logged_results(folder: Path, training: bool) -> tuple[dict[str, Any], Path] | None:
    """Return the results in the newest log of a folder, and that log; None without results."""
    log = newest_log(folder)
    results = results_in(read_text(log), training) if log else {}
    return (results, log) if log and results else None

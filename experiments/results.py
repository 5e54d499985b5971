"""What finished runs tell: their accuracy, from their own log, and whether they are finished."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from anchoropt_plugin.config.check import flattened
from anchoropt_plugin.config.record import FREE, RECORD
from anchoropt_plugin.files.atomic import atomic_write

from .plan import Job, Run

FACTS = "run.json"
"""Beside a run's log: how long it took, what memory, on what machine, from which commit."""
TRAINED = "Finish training"
TESTED = "=> result"
NUMBER = re.compile(r"^\* (\w+): ([\d.,eE+-]+)%?$", re.MULTILINE)


def newest_log(folder: Path) -> Path | None:
    """The log of the last command that wrote into ``folder``; each has one of its own."""
    logs = sorted(folder.glob("log.txt*"), key=lambda path: (path.stat().st_mtime_ns, path.name))
    return logs[-1] if logs else None


def numbers_in(log: str, trained: bool) -> dict[str, float]:
    """The numbers of the final test in a log, or nothing where the run did not end.

    The accuracy is ``correct`` / ``total``, which the log's own line rounds to one digit.

    >>> numbers_in('''Finish training
    ... => result
    ... * total: 1,000
    ... * correct: 918
    ... * accuracy: 91.8%
    ... * error: 8.2%
    ... * macro_f1: 91.7%
    ... Elapsed: 0:00:03
    ... ''', trained=True)["accuracy"]
    91.8
    """
    _, ended, end = log.rpartition(TRAINED) if trained else ("", TESTED, log)
    _, tested, result = end.rpartition(TESTED)
    if not ended or not tested or (trained and "\nElapsed: " not in result):
        return {}
    numbers = {name: float(text.replace(",", "")) for name, text in NUMBER.findall(result)}
    if "macro_f1" not in numbers:  # the last of them
        return {}
    numbers["accuracy"] = 100 * numbers["correct"] / numbers["total"]
    return numbers


def outcome(run: Run) -> dict[str, float]:
    """The numbers of a run that is finished with the settings it is to have, else nothing.

    A test is not finished where its model was trained again since.
    """
    log = newest_log(run.folder)
    if log is None or not _same_settings(run):
        return {}
    if run.model is not None:
        checkpoints = [path.stat().st_mtime_ns for path in run.model.glob("*/checkpoint")]
        if not checkpoints or max(checkpoints) > log.stat().st_mtime_ns:
            return {}
    return numbers_in(log.read_text(encoding="utf-8"), run.trains)


def _same_settings(run: Run) -> bool:
    path = run.folder / RECORD
    try:
        there = _recorded(path, path.stat().st_mtime_ns)
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return there == _binding(run.settings)


@lru_cache(maxsize=100_000)
def _recorded(path: Path, changed: int) -> str:
    """What binds in a config.yaml; it is read once, unless it was ``changed`` since."""
    # The loader written in C where there is one: thousands of runs are looked at several times.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(path.read_text(encoding="utf-8"))
    try:
        there = loader.get_single_data()
    finally:
        loader.dispose()
    return _binding(dict(flattened(there))) if isinstance(there, dict) else ""


def _binding(settings: Mapping[str, Any]) -> str:
    """A short text that differs where settings do that may not change when a run goes on."""
    binding = sorted((key, repr(value)) for key, value in settings.items() if key not in FREE)
    return hashlib.sha256(repr(binding).encode()).hexdigest()


def write_facts(facts: Mapping[str, Any], folder: Path) -> None:
    """Write ``run.json``, whole or not at all."""
    with atomic_write(folder / FACTS) as file:
        file.write(json.dumps(facts, indent=1).encode())


def read_facts(folder: Path) -> dict[str, Any]:
    """What ``run.json`` holds; nothing for a run that was started by hand."""
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _factors(run: Run) -> dict[str, Any]:
    return {**run.method.factors, **run.method.factors_at_test}


def results(jobs: Iterable[Job]) -> pd.DataFrame:
    """One row a finished run: its place in the tables, its numbers, its facts, every setting."""
    rows: list[dict[str, Any]] = []
    for run in (run for job in jobs for run in job.runs):
        numbers = outcome(run) if run.reported else {}
        if numbers:
            rows.append(
                {
                    "method": run.method.name,
                    "reference": run.method.reference,
                    "host": run.method.host,
                    "trainer": run.method.trainer,
                    "group": run.group,
                    "dataset": run.dataset,
                    "score": run.score,
                    "shots": run.shots,
                    "seed": run.seed,
                    "trained": run.method.trained,
                    "accuracy": numbers["accuracy"],
                    "macro_f1": numbers["macro_f1"],
                    "correct": int(numbers["correct"]),
                    "total": int(numbers["total"]),
                    "does": "train" if run.trains else "test",
                    **read_facts(run.folder),
                    "folder": str(run.folder),
                    **{f"factor.{name}": value for name, value in _factors(run).items()},
                    **run.settings,
                }
            )
    return pd.DataFrame(rows)

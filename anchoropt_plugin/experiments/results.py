"""The results of finished runs, and the rule that decides whether a run is finished."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from ..config.check import flattened
from ..config.record import FREE, RECORD
from ..files.atomic import write_text
from ..files.run_events import RESULTS, read_results
from .plan import Job, Run, as_in_yaml
from .repository import Checkout

FACTS = "run.json"
"""In a run's folder: its time, its memory, its machine and its commit."""


def newest_log(folder: Path) -> Path | None:
    """Return the log of the last command that wrote into ``folder``; each command has its own."""
    logs = folder.glob("log.txt*")
    return max(logs, key=lambda path: (path.stat().st_mtime_ns, path.name), default=None)


def outcome(run: Run) -> dict[str, Any]:
    """Return the results of a run; an empty dict unless it is finished with these settings.

    A test is unfinished if its model was trained again after the test.

    Raises:
        UserError: ``results.json`` cannot be read or holds something else.
    """
    if not _same_settings(run):
        return {}
    results = read_results(run.folder)
    if not results or results["after_training"] != run.trains:
        return {}
    if run.model is not None:
        tested = (run.folder / RESULTS).stat().st_mtime_ns
        checkpoints = [path.stat().st_mtime_ns for path in run.model.glob("*/checkpoint")]
        if not checkpoints or max(checkpoints) > tested:
            return {}
    return results


def _same_settings(run: Run) -> bool:
    path = run.folder / RECORD
    try:
        recorded = _recorded(path, path.stat().st_mtime_ns, run.repository)
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return recorded == _digest(run.settings, run.repository)


@lru_cache(maxsize=100_000)
def _recorded(path: Path, changed: int, repository: Checkout) -> str:
    """Return the digest of a config.yaml; the cache reads a file again after it ``changed``."""
    # The C loader, if there is one: experiments read thousands of these files several times.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(path.read_text(encoding="utf-8"))
    try:
        recorded = loader.get_single_data()
    finally:
        loader.dispose()
    return _digest(dict(flattened(recorded)), repository) if isinstance(recorded, dict) else ""


def _digest(settings: Mapping[str, Any], repository: Checkout) -> str:
    """Return a short text of the settings that must not change when a run is resumed.

    Defaults are left out: the record of an earlier version lacks keys that are new.
    """
    defaults = _defaults(repository)
    binding = sorted(
        (key, repr(value))
        for key, value in settings.items()
        if key not in FREE and repr(value) != defaults.get(key)
    )
    return hashlib.sha256(repr(binding).encode()).hexdigest()


@cache
def _defaults(repository: Checkout) -> dict[str, str]:
    return {key: repr(as_in_yaml(value)) for key, value in repository.defaults().items()}


def write_facts(facts: Mapping[str, Any], folder: Path) -> None:
    """Write ``run.json``, whole or not at all."""
    write_text(folder / FACTS, json.dumps(facts, indent=1))


def read_facts(folder: Path) -> dict[str, Any]:
    """Return what ``run.json`` holds; an empty dict for a run that was started by hand."""
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def results(jobs: Iterable[Job]) -> pd.DataFrame:
    """Return a row for each finished run: its place in the tables, results, facts and settings."""
    rows: list[dict[str, Any]] = []
    for run in (run for job in jobs for run in job.runs if run.reported):
        numbers = outcome(run)
        if numbers:
            factors = {**run.method.factors, **run.method.factors_at_test}
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
                    **{key: numbers[key] for key in ("accuracy", "macro_f1", "correct", "total")},
                    **{key: numbers[key] for key in ("order",) if key in numbers},
                    "does": "train" if run.trains else "test",
                    **read_facts(run.folder),
                    "folder": str(run.folder),
                    **{f"factor.{name}": value for name, value in factors.items()},
                    **run.settings,
                }
            )
    return pd.DataFrame(rows)

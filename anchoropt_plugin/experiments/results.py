"""The results of finished runs, and the rule that decides whether a run is finished."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from ..config.check import as_in_yaml
from ..errors import UserError
from ..files.predictions import PREDICTIONS, check_unedited
from ..files.run_events import model_of_test
from .facts import read_facts
from .plan import Job, Run

_NUMBERS = ("accuracy", "macro_f1", "correct", "total", "order", "predictions")
"""The results that are columns; an old Dassl prints no macro_f1, only AnchorOPT has an order."""


def outcome(run: Run) -> dict[str, Any]:
    """Return the results of a run; an empty dict unless it is finished with these settings.

    A test is unfinished if its model was trained again after the test, if somebody tested another
    folder's model, or another epoch, into its folder, or if it loaded no model.

    Raises:
        UserError: ``results.json`` cannot be read, holds something else, was edited, or is of
            another run; or ``predictions.csv`` is of another test.
    """
    if not run.repository.is_recorded(run.argv, run.folder, run.settings):
        return {}
    found = run.repository.results(run.folder, run.trains)
    if found is None:
        return {}
    results, path = found
    if run.model is not None:
        tested = path.stat().st_mtime_ns
        checkpoints = [path.stat().st_mtime_ns for path in run.model.glob("*/checkpoint")]
        if not checkpoints or max(checkpoints) > tested:
            return {}
    _check_own(run, results, path)
    if run.model is not None:
        planned = model_of_test(run.folder, run.model, run.epoch)
        default = planned if "training" not in results else None  # an earlier version wrote neither
        if results.get("model", default) != planned:
            return {}
    return results


def _check_own(run: Run, results: Mapping[str, Any], path: Path) -> None:
    """Check that results were not copied from the folder of another run."""
    for key, value in results.get("settings", {}).items():
        planned = as_in_yaml(run.settings.get(key, value))
        if planned != value:
            raise UserError(
                f"{path} is of a test with {key} {value}, but its folder of one with {planned}: "
                "remove it and test again"
            )
    predictions = path.with_name(PREDICTIONS)
    if predictions.is_file():
        changed = predictions.stat().st_mtime_ns
        _check_unedited(predictions, str(results.get("predictions") or ""), changed)


@cache
def _check_unedited(path: Path, written: str, changed: int) -> None:
    """Check a file once unless it changes: it has a line for each image."""
    check_unedited(path, written)


def finished(job: Job) -> list[tuple[Run, dict[str, Any]]]:
    """Return the finished runs of a job with their results.

    With an unfinished training it is empty: the tests were of a model that will be trained again.
    """
    found = [(run, outcome(run)) for run in job.runs]
    if job.runs[0].trains and not found[0][1]:
        return []
    return [(run, numbers) for run, numbers in found if numbers]


def results(jobs: Iterable[Job]) -> pd.DataFrame:
    """Return a row for each finished run: its place in the tables, results, facts and settings."""
    rows: list[dict[str, Any]] = []
    for run, numbers in (pair for job in jobs for pair in finished(job)):
        if run.reported:
            trained_on = numbers.get("images_per_class") or {}
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
                    "has_seeds": run.method.has_seeds,
                    **{key: numbers[key] for key in _NUMBERS if key in numbers},
                    **{f"{name}_images": count for name, count in trained_on.items()},
                    "does": "train" if run.trains else "test",
                    **read_facts(run.folder),
                    "folder": str(run.folder),
                    **{f"factor.{name}": value for name, value in factors.items()},
                    **run.settings,
                }
            )
    return pd.DataFrame(rows)

"""The time that a plan will take, from finished runs or from steps that are timed now."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from .execution import unfinished
from .fork_server import in_fork
from .plan import Job, Run
from .results import outcome, read_facts


@dataclass(frozen=True)
class Estimate:
    """The time of all unfinished runs, several at a time.

    Attributes:
        seconds: the time; 0 if it is unknown.
        unknown: the number of runs that are not counted.
        timed: whether steps were timed, or finished runs were used.
    """

    seconds: float
    unknown: int
    timed: bool

    def __str__(self) -> str:
        if not self.seconds:
            return "the time is unknown until a run is finished"
        minutes, seconds = divmod(round(self.seconds), 60)
        source = "a step timed now, without stage 1" if self.timed else "finished runs"
        more = f", {self.unknown} runs not counted" if self.unknown else ""
        return f"about {minutes} min {seconds:02} s, by {source}{more}"


def estimate(jobs: Sequence[Job], workers: int, time_steps: bool) -> Estimate:
    """Estimate the time of all unfinished runs.

    Args:
        jobs: the jobs of the plan.
        workers: the number of jobs at a time.
        time_steps: whether to time a few steps of each kind of run that has no finished run.
    """
    known: dict[Any, list[float]] = {}
    todo: list[Run] = []
    for job in jobs:
        undone = unfinished(job)
        todo += undone
        for run in job.runs:
            seconds = read_facts(run.folder).get("seconds")
            if run not in undone and seconds and outcome(run):
                known.setdefault(_kind(run), []).append(seconds)
    unknown = {_kind(run): run for run in todo if _kind(run) not in known}
    timed = bool(unknown) and time_steps
    if timed:
        known |= {kind: [seconds] for kind, seconds in _timed(unknown).items()}
    sure = [fmean(known[_kind(run)]) for run in todo if _kind(run) in known]
    longest = max(sure, default=0.0)
    return Estimate(max(sum(sure) / workers, longest), len(todo) - len(sure), timed)


def _kind(run: Run) -> Any:
    return run.method.trainer, run.dataset, run.shots, run.trains


def _timed(runs: dict[Any, Run]) -> dict[Any, float]:
    found = {}
    for kind, run in runs.items():
        # A run that cannot be built has no estimate; its execution will report the error.
        with contextlib.suppress(Exception):
            found[kind] = in_fork(run.repository, _seconds, run)
    return found


def _seconds(run: Run) -> float:
    """Return the seconds of a run: to build it, to train (each step as the second one), to test."""
    started = time.time()

    def timed(trainer: Any) -> float:
        built = time.time() - started
        test = _step(trainer, trainer.test_loader, training=False) * len(trainer.test_loader)
        if not run.trains:
            return built + test
        steps = run.settings["OPTIM.MAX_EPOCH"] * len(trainer.train_loader_x)
        return built + test + steps * _step(trainer, trainer.train_loader_x, training=True)

    return run.repository.with_trainer(run.argv, timed)


def _step(trainer: Any, loader: Any, training: bool) -> float:
    """Return the seconds of the second batch, or of the only one."""
    trainer.set_model_mode("train" if training else "eval")
    trainer.num_batches = len(loader) + 1  # no batch here is the last of an epoch
    seconds = 0.0
    started = time.time()
    for number, batch in zip(range(2), loader, strict=False):
        trainer.batch_idx = number
        if training:
            trainer.forward_backward(batch)
        else:
            trainer.model_inference(trainer.parse_batch_test(batch)[0])
        seconds, started = time.time() - started, time.time()
    return seconds

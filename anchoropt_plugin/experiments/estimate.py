"""The time that a plan will take, from finished runs or from steps that are timed now."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, NamedTuple

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

from ..errors import UserError
from ..training.stage_one import seconds_of_stage_one
from ..training.two_stages import TwoStages
from .execution import unfinished
from .fork_server import in_fork
from .formats import heading
from .plan import Job, Run
from .results import outcome, read_facts


class Parts(NamedTuple):
    """The seconds of the parts of a run."""

    build: float
    stage_one: float
    training: float
    test: float


@dataclass
class Kind:
    """Unfinished runs that take the same time, and what is known of it.

    Attributes:
        run: one of them.
        number: their number.
        anchors: what tells the stages 1 of their jobs apart; each is run once.
        finished: the seconds of finished runs of the kind.
        parts: the seconds of the parts, if they were timed.
        fault: why they could not be timed.
    """

    run: Run
    number: int = 0
    anchors: set[Any] = field(default_factory=set)
    finished: list[float] = field(default_factory=list)
    parts: Parts | None = None
    fault: str = ""

    @property
    def seconds(self) -> float | None:
        """Return the seconds of all its runs, one after another; None if they are unknown."""
        if self.finished:
            return fmean(self.finished) * self.number
        if self.parts is None:
            return None
        build, stage_one, training, test = self.parts
        return (build + training + test) * self.number + stage_one * len(self.anchors)

    @property
    def longest(self) -> float:
        """Return the seconds of its longest run; 0 if they are unknown."""
        return max(fmean(self.finished or [0.0]), sum(self.parts or [0.0]))


@dataclass(frozen=True)
class Estimate:
    """The time of all unfinished runs.

    Attributes:
        kinds: the kinds of unfinished runs.
        workers: the number of jobs at a time.
        tasks: the kinds of the unfinished runs of each job, which are run one after another.
    """

    kinds: Sequence[Kind]
    workers: int
    tasks: Sequence[Sequence[Kind]] = ()

    def __str__(self) -> str:
        known = [kind.seconds for kind in self.kinds if kind.seconds is not None]
        if not known:
            return "the time is unknown until a run is finished"
        longest = max((sum(kind.longest for kind in task) for task in self.tasks), default=0)
        unknown = sum(kind.number for kind in self.kinds if kind.seconds is None)
        timed = any(kind.parts for kind in self.kinds)
        texts = [f"about {_text(max(sum(known) / self.workers, longest))}"]
        texts += [f"by {'steps timed now' if timed else 'finished runs'}"]
        texts += [f"{sum(known) / 3600:.2g} GPU hours"] if timed and _has_gpu() else []
        if unknown:
            counted = sum(kind.number for kind in self.kinds) - unknown
            texts[0] += f" for {counted} of them"
            texts[-1] += f"; the time of the other {unknown} is unknown: " + (
                "their steps cannot be timed" if timed else "no run of their kinds is finished yet"
            )
        return ", ".join(texts)

    def table(self) -> Table:
        """Return a row for each kind: its runs, and the seconds of one run in parts."""
        where = torch.cuda.get_device_name() if _has_gpu() else "a CPU"
        title = f"Seconds of a run, timed now on {where}; stage 1 is run once for equal anchors"
        columns = ("runs", "n", "build", "stage 1", "training", "test", "all runs")
        table = Table(*columns, title=title, title_justify="left", box=SIMPLE_HEAD)
        for column in table.columns[1:]:
            column.justify, column.no_wrap = "right", True
        # A narrow terminal breaks a row between the words of its first cell, never in a name.
        names = [len(word) for kind in self.kinds for word in kind.run.method.name.split()]
        table.columns[0].min_width = max(names, default=0) + len(",")
        for kind in self.kinds:
            run, seconds = kind.run, kind.seconds
            doing = f"train, {heading(str(run.shots))}" if run.trains else "test"
            parts = [f"{part:.1f}" for part in kind.parts] if kind.parts else ["–"] * 4
            if kind.finished:
                doing += f"; finished runs took {fmean(kind.finished):.1f}"
            total = _text(seconds) if seconds is not None else "unknown"  # why is told once, below
            name = f"{run.method.name}, {run.dataset} {run.score}: {doing}"
            table.add_row(name, str(kind.number), *parts, total)
        return table


def estimate(jobs: Sequence[Job], workers: int, time_steps: bool) -> Estimate:
    """Estimate the time of all unfinished runs.

    Args:
        jobs: the jobs of the plan.
        workers: the number of jobs at a time.
        time_steps: whether to time a few steps of each kind of run that has no finished run.
    """
    kinds: dict[Any, Kind] = {}
    tasks = []
    for job in jobs:
        undone = unfinished(job)
        for run in job.runs:
            kind = kinds.setdefault(_key(run), Kind(run))
            if run in undone:
                kind.number += 1
                if run.trains and run.repository.is_two_stages(run.method.trainer):
                    kind.anchors.add(job.anchors or run.folder)
            elif (seconds := read_facts(run.folder).get("seconds")) and outcome(run):
                kind.finished.append(seconds)
        tasks.append([kinds[_key(run)] for run in undone])
    todo = [kind for kind in kinds.values() if kind.number]
    if time_steps:
        _time(kind for kind in todo if not kind.finished)
    return Estimate(todo, workers, tasks)


def _key(run: Run) -> Any:
    return run.method.name, run.group, run.dataset, run.score, run.shots, run.trains


def _time(kinds: Iterable[Kind]) -> None:
    for kind in kinds:
        try:
            kind.parts = in_fork(kind.run.repository, _parts, kind.run)
        except UserError as error:
            kind.fault = str(error)
        except Exception as error:
            kind.fault = f"{type(error).__name__}: {error}"


def _parts(run: Run) -> Parts:
    """Return the seconds of the parts of a run; each step takes as long as the second one."""
    started = time.time()

    def timed(trainer: Any) -> Parts:
        built = time.time() - started
        test = _step(trainer, trainer.test_loader, training=False) * len(trainer.test_loader)
        if not run.trains:
            return Parts(built, 0.0, 0.0, test)
        stage_one, steps = 0.0, len(trainer.train_loader_x)
        if isinstance(trainer, TwoStages):
            ours = trainer.anchoropt
            stage_one = seconds_of_stage_one(
                ours.settings, ours.tower, ours.classes, steps, trainer._image_batches
            )
        training = (
            run.settings["OPTIM.MAX_EPOCH"]
            * steps
            * _step(trainer, trainer.train_loader_x, training=True)
        )
        return Parts(built, stage_one, training, test)

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
        if _has_gpu():
            torch.cuda.synchronize()
        seconds, started = time.time() - started, time.time()
    return seconds


def _has_gpu() -> bool:
    return torch.cuda.is_available()


def _text(seconds: float) -> str:
    """Return a time in words.

    >>> _text(65), _text(7260)
    ('1 min 05 s', '2 h 01 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes // 60} h {minutes % 60:02} min"
        if minutes >= 60
        else f"{minutes} min {rest:02} s"
    )

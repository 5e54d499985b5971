"""Execution of jobs on this machine: several at a time, each run in its own process.

An executor takes jobs and yields what happens to their runs until all are done. Nothing else of it
is used elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..files.run_events import EVENTS, read_events
from ..process.code_version import commit_of, package_version
from .fork_server import context_of
from .logs import newest_log
from .plan import Job, Run
from .repository import Repository
from .results import finished, outcome
from .worker import perform

POLL_SECONDS = 0.2
"""The time between two looks at the events of the runs."""


class Event(NamedTuple):
    """A change of a run: it is ``started``, ``at`` an epoch, ``finished`` or ``failed``."""

    kind: str
    run: Run
    epoch: int = 0
    epochs: int = 0
    error: str = ""

    @property
    def failure(self) -> str:
        """Return the run, the reason of its failure and the path of its log."""
        log = newest_log(self.run.folder)
        return f"{self.run}: {self.error}" + (f" (log: {log})" if log else "")


Executor = Callable[[Sequence[Job], int], Generator[Event, None, None]]


def gpus() -> list[str]:
    """Return the available GPUs as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name.strip()]
    return [str(number) for number in range(torch.cuda.device_count())]


def default_workers() -> int:
    """Return the number of GPUs, or without GPUs the number of CPU cores."""
    allowed = getattr(os, "sched_getaffinity", None)  # only Linux tells which cores are ours
    return len(gpus()) or (len(allowed(0)) if allowed else os.cpu_count() or 1)


def run_locally(jobs: Sequence[Job], workers: int) -> Generator[Event, None, None]:
    """Execute the unfinished runs of ``jobs`` on this machine, ``workers`` at a time.

    A run's process computes with one thread unless OMP_NUM_THREADS says otherwise, so the numbers
    do not depend on ``workers``. Jobs that share stage 1 wait until one of them has learned the
    anchors. After a failed run the rest of its job is skipped.
    """
    with _Machine(workers, jobs[0].runs[0].repository) as machine:
        yield from machine.events(list(jobs))


@dataclass
class _RunningJob:
    """A job in execution."""

    job: Job
    waiting: list[Run]
    device: str
    process: Any = None
    messages: Connection | None = None
    error: str = ""
    version: tuple[int, ...] = ()

    @property
    def run(self) -> Run:
        return self.waiting[0]

    def news(self) -> list[dict[str, Any]]:
        """Return the events of the run, if their file has changed; else an empty list."""
        version = _version(self.run.folder / EVENTS)
        if version == self.version:  # the file may be from an earlier, killed run
            return []
        self.version = version
        return read_events(self.run.folder)


class _Machine:
    """The processes at work and the jobs that wait for them."""

    def __init__(self, workers: int, repository: Repository) -> None:
        self.context = context_of(repository)
        devices = gpus() or [""]
        self.free = [devices[number % len(devices)] for number in range(workers)]
        self.running: list[_RunningJob] = []
        self.learning: dict[str, _RunningJob] = {}
        self.learned: set[str] = {""}
        self.code = {
            "commit": commit_of(repository.folder),
            "anchoropt_plugin": package_version(),
        }

    def __enter__(self) -> _Machine:
        return self

    def __exit__(self, *_: object) -> None:
        for running in self.running:
            if running.process is not None:
                running.process.kill()
                running.process.join()

    def events(self, jobs: list[Job]) -> Iterator[Event]:
        waiting = [(job, unfinished(job)) for job in jobs]
        waiting = _leaders_first([(job, runs) for job, runs in waiting if runs])
        while waiting or self.running:
            while self.free and (number := self._next(waiting)) is not None:
                job, runs = waiting.pop(number)
                running = _RunningJob(job, list(runs), self.free.pop(0))
                self.running.append(running)
                if job.anchors not in self.learned:
                    self.learning[job.anchors] = running
                yield self._start(running)
            yield from self._watch()

    def _next(self, waiting: Iterable[tuple[Job, list[Run]]]) -> int | None:
        """Return the number of the first job that does not wait for another job's anchors."""
        for number, (job, _) in enumerate(waiting):
            if job.anchors in self.learned or job.anchors not in self.learning:
                return number
        return None

    def _start(self, running: _RunningJob) -> Event:
        environment = {"OMP_NUM_THREADS": os.environ["OMP_NUM_THREADS"]}
        if running.device:
            environment["CUDA_VISIBLE_DEVICES"] = running.device
        running.version = _version(running.run.folder / EVENTS)
        running.messages, to_parent = self.context.Pipe(duplex=False)
        running.process = self.context.Process(
            target=perform, args=(running.run, to_parent, environment, self.code)
        )
        running.process.start()
        to_parent.close()
        running.error = ""
        return Event("started", running.run)

    def _watch(self) -> Iterator[Event]:
        """Yield the news of all runs, and start the next run where a process has ended."""
        pipes = [running.messages for running in self.running if running.messages]
        ready = wait(pipes, POLL_SECONDS)
        for running in list(self.running):
            # Read after the wait: at the end of a process all of its events are in the file.
            news = running.news()
            if any(event["event"] == "anchors" for event in news):
                self._anchors_of(running, are_learned=True)
            epochs = [event for event in news if event["event"] == "epoch"]
            if epochs:
                yield Event("at", running.run, epochs[-1]["epoch"], epochs[-1]["epochs"])
            if running.messages in ready:
                try:
                    running.error = running.messages.recv()
                except EOFError:
                    yield from self._ended(running)

    def _anchors_of(self, running: _RunningJob, are_learned: bool) -> None:
        if self.learning.get(running.job.anchors) is running:
            del self.learning[running.job.anchors]
            if are_learned:
                self.learned.add(running.job.anchors)

    def _ended(self, running: _RunningJob) -> Iterator[Event]:
        running.process.join()
        code = running.process.exitcode
        if code and not running.error:
            why = f"signal {-code}, for example out of memory" if code < 0 else f"status {code}"
            running.error = f"its process ended with {why}"
        elif not running.error and not outcome(running.run):
            of_model = " of the planned model and epoch, which load_model of the trainer must load"
            running.error = f"it ended without results{of_model if running.run.model else ''}"
        running.process.close()
        running.process = None
        run = running.waiting.pop(0)
        if running.error:
            yield Event("failed", run, error=running.error)
            for other in running.waiting:
                yield Event("failed", other, error=f"skipped: {run} failed")
            running.waiting.clear()
        else:
            yield Event("finished", run)
        if running.waiting:
            yield self._start(running)
        else:
            self._anchors_of(running, are_learned=False)
            self.running.remove(running)
            self.free.append(running.device)


def _version(path: Path) -> tuple[int, ...]:
    """Return numbers that differ whenever a file was written again; none if it is missing."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _leaders_first(waiting: list[tuple[Job, list[Run]]]) -> list[tuple[Job, list[Run]]]:
    """Put the first job of each stage 1 in front, because others wait for its anchors."""
    first = {job.anchors: job for job, _ in reversed(waiting) if job.anchors}
    return sorted(waiting, key=lambda entry: entry[0] is not first.get(entry[0].anchors))


def unfinished(job: Job) -> list[Run]:
    """Return the unfinished runs of a job; with an unfinished training, all of its tests too."""
    done = [run for run, _ in finished(job)]
    return [run for run in job.runs if not any(run is other for other in done)]

"""Doing the jobs of a plan on this machine: side by side, a process a run.

An executor takes jobs and yields what happens to their runs, until nothing is left to do. That is
all that the rest knows of it.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import torch

from .files import REPOSITORY
from .plan import Job, Run
from .results import outcome
from .worker import perform


def prepare_server() -> Any:
    """The multiprocessing context whose processes are forked where everything is imported."""
    # Read by the server when it starts, which is before anything is computed.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if str(REPOSITORY) not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPOSITORY), *paths]))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([perform.__module__])
    return context


class Event(NamedTuple):
    """What happened to a run: it is ``started``, ``at`` an epoch, ``finished`` or ``failed``."""

    kind: str
    run: Run
    epoch: int = 0
    epochs: int = 0
    error: str = ""


Executor = Callable[[Sequence[Job], int], Generator[Event, None, None]]


def gpus() -> list[str]:
    """The GPUs that may be used, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name.strip()]
    return [str(number) for number in range(torch.cuda.device_count())]


def default_workers() -> int:
    """One a GPU; without any, one a core."""
    allowed = getattr(os, "sched_getaffinity", None)  # Linux alone tells which cores are ours
    return len(gpus()) or (len(allowed(0)) if allowed else os.cpu_count() or 1)


def run_locally(jobs: Sequence[Job], workers: int) -> Generator[Event, None, None]:
    """Do jobs on this machine, ``workers`` at a time; those that are finished cost nothing.

    A run's process computes with one thread unless OMP_NUM_THREADS says otherwise, so that numbers
    do not depend on ``workers``. Of the jobs that share a stage 1 one begins, and the others wait
    until it has learned the anchors. After a run that failed the rest of its job is left out.
    """
    with _Machine(workers) as machine:
        yield from machine.events(list(jobs))


@dataclass
class _Place:
    """A job at work."""

    job: Job
    waiting: list[Run]
    device: str
    process: Any = None
    messages: Connection | None = None
    error: str = ""

    @property
    def run(self) -> Run:
        return self.waiting[0]


class _Machine:
    """The processes at work, and what they are to know of each other."""

    def __init__(self, workers: int) -> None:
        self.context = prepare_server()
        devices = gpus() or [""]
        self.free = [devices[number % len(devices)] for number in range(workers)]
        self.places: list[_Place] = []
        self.learning: dict[str, _Place] = {}
        self.learned: set[str] = {""}
        self.commit = commit()

    def __enter__(self) -> _Machine:
        return self

    def __exit__(self, *_: object) -> None:
        for place in self.places:
            if place.process is not None:
                place.process.kill()
                place.process.join()

    def events(self, jobs: list[Job]) -> Iterator[Event]:
        waiting = [(job, left(job)) for job in jobs]
        waiting = _leaders_first([(job, runs) for job, runs in waiting if runs])
        while waiting or self.places:
            while self.free and (number := self._next(waiting)) is not None:
                job, runs = waiting.pop(number)
                place = _Place(job, list(runs), self.free.pop(0))
                self.places.append(place)
                if job.anchors not in self.learned:
                    self.learning[job.anchors] = place
                yield self._start(place)
            yield from self._listen()

    def _next(self, waiting: Iterable[tuple[Job, list[Run]]]) -> int | None:
        """The first job that need not wait for another's anchors."""
        for number, (job, _) in enumerate(waiting):
            if job.anchors in self.learned or job.anchors not in self.learning:
                return number
        return None

    def _start(self, place: _Place) -> Event:
        environment = {"OMP_NUM_THREADS": os.environ["OMP_NUM_THREADS"]}
        if place.device:
            environment["CUDA_VISIBLE_DEVICES"] = place.device
        place.messages, to_parent = self.context.Pipe(duplex=False)
        place.process = self.context.Process(
            target=perform, args=(place.run, to_parent, environment, self.commit)
        )
        place.process.start()
        to_parent.close()
        place.error = ""
        return Event("started", place.run)

    def _listen(self) -> Iterator[Event]:
        by_messages = {place.messages: place for place in self.places}
        for messages in wait(list(by_messages)):
            place = by_messages[messages]
            try:
                match messages.recv():
                    case "epoch", epoch, epochs:
                        yield Event("at", place.run, epoch, epochs)
                    case ("anchors",):
                        self._anchors_of(place, are_learned=True)
                    case "failed", why:
                        place.error = why
            except EOFError:
                yield from self._ended(place)

    def _anchors_of(self, place: _Place, are_learned: bool) -> None:
        if self.learning.get(place.job.anchors) is place:
            del self.learning[place.job.anchors]
            if are_learned:
                self.learned.add(place.job.anchors)

    def _ended(self, place: _Place) -> Iterator[Event]:
        place.process.join()
        code = place.process.exitcode
        if code and not place.error:
            why = f"signal {-code}, as when memory runs out" if code < 0 else f"exit status {code}"
            place.error = f"its process ended with {why}"
        elif not place.error and not outcome(place.run):
            place.error = "it ended without a result in its log"
        place.process.close()
        place.process = None
        run = place.waiting.pop(0)
        if place.error:
            yield Event("failed", run, error=place.error)
            for other in place.waiting:
                yield Event("failed", other, error=f"left out: {run} failed")
            place.waiting.clear()
        else:
            yield Event("finished", run)
        if place.waiting:
            yield self._start(place)
        else:
            self._anchors_of(place, are_learned=False)
            self.places.remove(place)
            self.free.append(place.device)


def _leaders_first(waiting: list[tuple[Job, list[Run]]]) -> list[tuple[Job, list[Run]]]:
    """The first job of each stage 1 in front, as others wait for its anchors; then the rest."""
    first: dict[str, Job] = {}
    for job, _ in waiting:
        first.setdefault(job.anchors, job)
    leads = [bool(job.anchors) and first[job.anchors] is job for job, _ in waiting]
    pairs = sorted(zip(leads, waiting, strict=True), key=lambda pair: not pair[0])
    return [entry for _, entry in pairs]


def left(job: Job) -> list[Run]:
    """The runs of a job that are not finished; after one of them its tests are not either."""
    runs = [run for run in job.runs if not outcome(run)]
    return job.runs if runs and runs[0].trains else runs


def commit() -> str:
    """The commit of this repository, with ``-dirty`` where files differ from it."""
    words = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""

"""Doing the jobs of a plan on a Slurm cluster, as job arrays submitted through submitit.

A job of the plan is a task of an array, which does its runs as this machine would: one after
another, each in a process of its own. What happens to them it adds to a file of events, which is
read here. A job that Slurm requeues goes on from the last checkpoint. Jobs outlive the command
that submitted them: the same command attaches to those that are queued or at work.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing.forkserver
import re
import signal
import subprocess
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from anchoropt_plugin import UserError
from anchoropt_plugin.files.atomic import atomic_write

from .execution import Event, left, prepare_server, run_locally
from .plan import Job, Run
from .results import outcome

TIMEOUTS = 100
"""How many times a job is requeued that reached its time."""
CHECKPOINTS = 10
"""Checkpoints of a training, where TRAIN.CHECKPOINT_FREQ asks for none."""
MAX_ARRAY = 1001
"""Tasks of an array, where Slurm does not say: its own default."""
EVENTS_EVERY, STATES_EVERY = 1.0, 10.0
"""Seconds from one look at the events, and at Slurm's queue, to the next."""
ENDED = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
    *("PREEMPTED", "REVOKED", "TIMEOUT"),
}
"""Slurm's states of jobs that are over, unless they are requeued a moment later."""


@dataclass
class Task:
    """What one task of an array does; submitit keeps it in a file, and calls it on the node."""

    job: Job
    events: Path

    def __call__(self) -> None:
        _shield_runs()
        number = {run.folder: str(number) for number, run in enumerate(self.job.runs)}
        with self.events.open("a", encoding="utf-8") as file:
            for event in run_locally([self.job], 1):
                told = {**event._asdict(), "run": number[event.run.folder]}
                print(json.dumps(told), file=file, flush=True)

    def checkpoint(self) -> Any:
        """What submitit puts into the queue again before the job's time is over."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _shield_runs() -> None:
    """Start the server of processes such that they ignore the signals of the cluster.

    Slurm sends them to all processes of a job; they are for the first, which ends the others.
    """
    theirs = {
        number: signal.signal(number, signal.SIG_IGN)
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    }
    prepare_server()
    multiprocessing.forkserver.ensure_running()
    for number, handler in theirs.items():
        signal.signal(number, handler)


@dataclass
class _Place:
    """A job that Slurm has, and what is not yet known of its runs."""

    job: Job
    id: str
    events: Path
    log: Path
    waiting: dict[str, Run] = field(init=False)
    started: set[str] = field(default_factory=set)
    read: int = 0
    is_gone: bool = False

    def __post_init__(self) -> None:
        undone = left(self.job)
        self.waiting = {str(n): run for n, run in enumerate(self.job.runs) if run in undone}

    def news(self) -> Iterator[Event]:
        """What was added to the events since the last look."""
        if not self.events.exists():
            return
        with self.events.open("rb") as file:
            file.seek(self.read)
            for line in file:
                if not line.endswith(b"\n"):  # it is being written
                    break
                self.read += len(line)
                told = json.loads(line)
                number = told.pop("run")
                if number in self.waiting:
                    yield from self._told(number, Event(run=self.waiting[number], **told))

    def _told(self, number: str, event: Event) -> Iterator[Event]:
        if number not in self.started and event.kind in ("started", "at"):
            self.started.add(number)
            yield Event("started", event.run)
        if event.kind != "started":  # once more, if it was requeued
            yield event
        if event.kind in ("finished", "failed"):
            del self.waiting[number]

    def over(self, state: str) -> Iterator[Event]:
        """What became of the runs that nothing was told of, now that Slurm has ended the job."""
        why = f"Slurm ended its job {self.id} ({state}), whose log is {self.log}"
        for run in self.waiting.values():
            yield Event("finished", run) if outcome(run) else Event("failed", run, error=why)
        self.waiting.clear()


class Slurm:
    """An executor: submits jobs, or attaches to those that are submitted, and follows them.

    Args:
        options: submitit's, for all jobs.
        folder: of submitit's files and logs, the events, and which jobs were submitted; it is one
            that all nodes see.
    """

    def __init__(self, options: Mapping[str, Any], folder: Path) -> None:
        self.options = options
        self.folder = folder

    def __call__(self, jobs: Sequence[Job], workers: int) -> Generator[Event, None, None]:
        """Yield what happens to the runs of ``jobs``; of an array ``workers`` are at work.

        More jobs than Slurm takes in an array are several arrays, which share ``workers``. A job
        that needs another's anchors waits until that one is over.

        Raises:
            UserError: Slurm refuses a job, or has one in the same folder with other settings.
        """
        todo = [_with_checkpoints(job) for job in jobs if left(job)]
        states = _states()
        if states is None:
            raise UserError("squeue fails: is Slurm up? Nothing was submitted")
        prepare_server()  # jobs inherit the environment
        self.folder.mkdir(parents=True, exist_ok=True)
        places = [place for job in todo if (place := self._attached(job, states))]
        if places:
            print(f"attached to {len(places)} jobs that were submitted before")
        try:
            known = {place.job.runs[0].folder for place in places}
            new = [job for job in todo if job.runs[0].folder not in known]
            largest = _largest_array()
            for jobs, dependency in self._arrays(new, places):
                arrays = [jobs[at : at + largest] for at in range(0, len(jobs), largest)]
                for array in arrays:
                    places += self._submit(array, dependency, max(1, workers // len(arrays)))
            yield from _followed(places)
        finally:
            at_work = [place.id for place in places if place.waiting]
            if at_work:
                print(_parting(at_work))

    def _attached(self, job: Job, states: Mapping[str, str]) -> _Place | None:
        """The place of a job that Slurm has already."""
        try:
            record = json.loads(self._file(job, "json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        if states.get(record["id"], "COMPLETED") in ENDED:
            return None
        if record["runs"] != _words(job):
            raise UserError(
                f"Slurm's job {record['id']} is at work in {job.runs[0].folder} with other "
                f"settings: wait for it, or `scancel {record['id']}`"
            )
        return _Place(job, record["id"], self._file(job, "jsonl"), Path(record["log"]))

    def _arrays(self, jobs: list[Job], places: list[_Place]) -> Iterator[tuple[list[Job], str]]:
        """Those that may begin at once, and then those that wait for the anchors of others.

        Yields:
            Jobs, and what they depend on in Slurm's words.
        """
        ids = {place.job.anchors: place.id for place in reversed(places)}
        free: list[Job] = []
        waiting: list[Job] = []
        leads: set[str] = set()
        for job in jobs:
            follows = bool(job.anchors) and job.anchors in ids.keys() | leads
            (waiting if follows else free).append(job)
            leads.add(job.anchors)
        yield sorted(free, key=lambda job: not job.anchors), ""
        ids |= {place.job.anchors: place.id for place in reversed(places)}
        awaited = sorted({ids[job.anchors] for job in waiting})
        yield waiting, ":".join(["afterany", *awaited])

    def _submit(self, jobs: list[Job], dependency: str, workers: int) -> list[_Place]:
        import submitit

        executor = submitit.SlurmExecutor(self.folder, max_num_timeout=TIMEOUTS)
        executor.update_parameters(
            **self.options,
            job_name="anchoropt",
            array_parallelism=workers,
            dependency=dependency or None,
        )
        for job in jobs:
            self._file(job, "jsonl").unlink(missing_ok=True)
        tasks = [Task(job, self._file(job, "jsonl")) for job in jobs]
        try:
            submitted = executor.submit_array(tasks)
        except submitit.core.utils.FailedJobError as error:
            raise UserError(f"Slurm refuses the jobs: {_last_line(error)}") from error
        places = []
        for job, it in zip(jobs, submitted, strict=True):
            place = _Place(job, it.job_id, self._file(job, "jsonl"), it.paths.stderr)
            record = {"id": place.id, "log": str(place.log), "runs": _words(job)}
            with atomic_write(self._file(job, "json")) as file:
                file.write(json.dumps(record).encode())
            places.append(place)
        ids = " ".join(sorted({place.id.partition("_")[0] for place in places}))
        print(f"submitted {len(places)} jobs to Slurm: {ids}")
        return places

    def _file(self, job: Job, suffix: str) -> Path:
        name = hashlib.sha256(str(job.runs[0].folder.absolute()).encode()).hexdigest()[:16]
        return self.folder / f"{name}.{suffix}"


def _words(job: Job) -> list[list[str]]:
    return [list(run.argv) for run in job.runs]


def _with_checkpoints(job: Job) -> Job:
    """The same job, whose training keeps checkpoints to go on from."""

    def kept(run: Run) -> Run:
        if not run.trains or run.settings["TRAIN.CHECKPOINT_FREQ"] > 0:
            return run
        every = max(1, run.settings["OPTIM.MAX_EPOCH"] // CHECKPOINTS)
        return replace(run, argv=(*run.argv, "TRAIN.CHECKPOINT_FREQ", str(every)))

    return replace(job, runs=[kept(run) for run in job.runs])


def _followed(places: Sequence[_Place]) -> Iterator[Event]:
    """The events of all places, until nothing more can come."""
    next_states = 0.0
    while waiting := [place for place in places if place.waiting]:
        # Slurm first: what a job that is over had to tell is in its events by then.
        states = None
        if time.monotonic() >= next_states:
            states = _states()
            next_states = time.monotonic() + STATES_EVERY
        for place in waiting:
            yield from place.news()
            if states is not None:
                state = states.get(place.id, "unknown to squeue")
                ended = state in ENDED or place.id not in states
                if ended and place.is_gone:  # twice: it is not between two lives
                    yield from place.over(state)
                place.is_gone = ended
        time.sleep(EVENTS_EVERY)


def _states() -> dict[str, str] | None:
    """From the ids of this user's jobs to their states; None where Slurm does not answer."""
    words = ["squeue", "--me", "--noheader", "--array", "--states=all", "--format=%i %T"]
    try:
        answer = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    pairs = (line.partition(" ") for line in answer.stdout.splitlines())
    return {id: state.strip() for id, _, state in pairs}


def _largest_array() -> int:
    """How many tasks an array may have, by Slurm's configuration."""
    try:
        answer = subprocess.run(
            ["scontrol", "show", "config"], capture_output=True, text=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return MAX_ARRAY
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", answer.stdout, re.MULTILINE)
    return max(1, int(found[1])) if found else MAX_ARRAY


def _parting(ids: Sequence[str]) -> str:
    arrays = " ".join(sorted({id.partition("_")[0] for id in ids}))
    return (
        f"{len(ids)} jobs go on in Slurm. `squeue --me` shows them, the same command follows them "
        f"again, `scancel {arrays}` cancels them"
    )


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]

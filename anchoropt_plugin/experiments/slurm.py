"""Execution of jobs on a Slurm cluster, as job arrays that submitit submits.

A job of the plan is a task of an array. The task executes its runs as on this machine: one after
another, each in its own process. It appends what happens to a file of events, and the command that
submitted the job reads this file. A requeued job resumes from its last checkpoint. Jobs continue
after the command has ended; the same command attaches to queued and running jobs.
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

from ..errors import UserError
from ..files.atomic import write_text
from .execution import Event, run_locally, unfinished
from .fork_server import prepare_server
from .formats import counted
from .plan import Job, Run
from .repository import Repository
from .results import outcome

TIMEOUTS = 100
"""The number of times that a job is requeued after it reached its time limit."""
CHECKPOINTS = 10
"""The number of checkpoints of a training if TRAIN.CHECKPOINT_FREQ asks for none."""
MAX_ARRAY = 1001
"""The largest array if Slurm does not tell its own: Slurm's default."""
EVENTS_EVERY, STATES_EVERY = 1.0, 10.0
"""The seconds between two looks at the events, and at Slurm's queue."""
ENDED = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
    *("PREEMPTED", "REVOKED", "TIMEOUT"),
}
"""Slurm's states of ended jobs; a preempted job may be requeued a moment later."""


@dataclass
class Task:
    """The work of one task of an array; submitit pickles this object and calls it on the node."""

    job: Job
    events: Path

    def __call__(self) -> None:
        _shield_runs(self.job.runs[0].repository)
        with self.events.open("a", encoding="utf-8") as file:
            for event in run_locally([self.job], 1):
                told = {**event._asdict(), "run": str(event.run.folder)}
                print(json.dumps(told), file=file, flush=True)

    def checkpoint(self) -> Any:
        """Return what submitit requeues before the time limit of the job."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _shield_runs(repository: Repository) -> None:
    """Start the fork server with the cluster's signals ignored, also in the processes of runs.

    Slurm sends its signals to all processes of a job. Only the first process has to react: it ends
    the others.
    """
    handlers = {
        number: signal.signal(number, signal.SIG_IGN)
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    }
    prepare_server(repository)
    multiprocessing.forkserver.ensure_running()
    for number, handler in handlers.items():
        signal.signal(number, handler)


@dataclass
class _SubmittedJob:
    """A job in Slurm, with the runs whose end is not known yet, by their folders."""

    job: Job
    id: str
    events: Path
    log: Path
    waiting: dict[str, Run] = field(init=False)
    read: int = 0
    is_gone: bool = False

    def __post_init__(self) -> None:
        self.waiting = {str(run.folder): run for run in unfinished(self.job)}

    def news(self) -> Iterator[Event]:
        """Yield the events that were appended since the last look."""
        if not self.events.exists():
            return
        with self.events.open("rb") as file:
            file.seek(self.read)
            for line in file:
                if not line.endswith(b"\n"):  # the line is being written
                    break
                self.read += len(line)
                told = json.loads(line)
                folder = told.pop("run")
                if folder in self.waiting:
                    event = Event(run=self.waiting[folder], **told)
                    if event.kind in ("finished", "failed"):
                        del self.waiting[folder]
                    yield event

    def over(self, state: str) -> Iterator[Event]:
        """Yield the end of the runs without an end in the events, after Slurm has ended the job."""
        why = f"Slurm ended its job {self.id} ({state}); the job's log is {self.log}"
        for run in self.waiting.values():
            yield Event("finished", run) if outcome(run) else Event("failed", run, error=why)
        self.waiting.clear()


class Slurm:
    """An executor that submits jobs, or attaches to submitted ones, and follows them.

    Args:
        options: submitit's options for all jobs.
        folder: the folder of submitit's files, the logs, the events and the submitted jobs. All
            nodes must see this folder.
    """

    def __init__(self, options: Mapping[str, Any], folder: Path) -> None:
        self.options = options
        self.folder = folder

    def __call__(self, jobs: Sequence[Job], workers: int) -> Generator[Event, None, None]:
        """Yield what happens to the runs of ``jobs``, of which ``workers`` are executed at a time.

        If Slurm's largest array is too small for all jobs, several arrays share ``workers``. A job
        that needs the anchors of another job waits for the end of that job.

        Raises:
            UserError: Slurm refuses a job, or already has a job with the same folder and other
                settings.
        """
        todo = [_with_checkpoints(job) for job in jobs if unfinished(job)]
        states = _states()
        if states is None:
            raise UserError(
                "squeue fails, so nothing was submitted: check that Slurm is up here, or leave out "
                "--executor slurm"
            )
        prepare_server(jobs[0].runs[0].repository)  # jobs inherit the environment
        self.folder.mkdir(parents=True, exist_ok=True)
        followed = [submitted for job in todo if (submitted := self._attached(job, states))]
        if followed:
            print(f"attached to {counted(len(followed), 'job')} submitted before")
        try:
            known = {submitted.job.runs[0].folder for submitted in followed}
            new = [job for job in todo if job.runs[0].folder not in known]
            largest = _largest_array()
            for jobs, dependency in self._arrays(new, followed):
                arrays = [jobs[at : at + largest] for at in range(0, len(jobs), largest)]
                for array in arrays:
                    followed += self._submit(array, dependency, max(1, workers // len(arrays)))
            yield from _followed(followed)
        finally:
            at_work = [submitted.id for submitted in followed if submitted.waiting]
            if at_work:
                print(_notice(at_work))

    def _attached(self, job: Job, states: Mapping[str, str]) -> _SubmittedJob | None:
        """Return a job as submitted, if Slurm already has it; else None."""
        try:
            record = json.loads(self._file(job, "json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        if states.get(record["id"], "COMPLETED") in ENDED:
            return None
        if record["runs"] != _words(job):
            raise UserError(
                f"Slurm's job {record['id']} uses {job.runs[0].folder} with other settings: wait "
                f"for the job, or `scancel {record['id']}`"
            )
        return _SubmittedJob(job, record["id"], self._file(job, "jsonl"), Path(record["log"]))

    def _arrays(
        self, jobs: list[Job], followed: list[_SubmittedJob]
    ) -> Iterator[tuple[list[Job], str]]:
        """Yield the jobs that can start at once, then those that wait for the anchors of others.

        Yields:
            Jobs, and their dependency in Slurm's syntax.
        """
        ids = {submitted.job.anchors: submitted.id for submitted in reversed(followed)}
        free: list[Job] = []
        waiting: list[Job] = []
        leads: set[str] = set()
        for job in jobs:
            follows = bool(job.anchors) and job.anchors in ids.keys() | leads
            (waiting if follows else free).append(job)
            leads.add(job.anchors)
        yield sorted(free, key=lambda job: not job.anchors), ""
        ids |= {submitted.job.anchors: submitted.id for submitted in reversed(followed)}
        awaited = sorted({ids[job.anchors] for job in waiting})
        yield waiting, ":".join(["afterany", *awaited])

    def _submit(self, jobs: list[Job], dependency: str, workers: int) -> list[_SubmittedJob]:
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
            slurm_jobs = executor.submit_array(tasks)
        except submitit.core.utils.FailedJobError as error:
            reason = str(error).strip().splitlines()[-1]
            raise UserError(f"Slurm refuses the jobs: {reason}") from error
        followed = []
        for job, slurm_job in zip(jobs, slurm_jobs, strict=True):
            submitted = _SubmittedJob(
                job, slurm_job.job_id, self._file(job, "jsonl"), slurm_job.paths.stderr
            )
            record = {"id": submitted.id, "log": str(submitted.log), "runs": _words(job)}
            write_text(self._file(job, "json"), json.dumps(record))
            followed.append(submitted)
        ids = " ".join(sorted({submitted.id.partition("_")[0] for submitted in followed}))
        print(f"submitted {counted(len(followed), 'job')} to Slurm: {ids}")
        return followed

    def _file(self, job: Job, suffix: str) -> Path:
        name = hashlib.sha256(str(job.runs[0].folder.absolute()).encode()).hexdigest()[:16]
        return self.folder / f"{name}.{suffix}"


def _words(job: Job) -> list[list[str]]:
    return [list(run.argv) for run in job.runs]


def _with_checkpoints(job: Job) -> Job:
    """Return the same job with checkpoints in its training, so that it can resume."""

    def with_checkpoints(run: Run) -> Run:
        if not run.trains or run.settings["TRAIN.CHECKPOINT_FREQ"] > 0:
            return run
        every = max(1, run.settings["OPTIM.MAX_EPOCH"] // CHECKPOINTS)
        return replace(run, argv=(*run.argv, "TRAIN.CHECKPOINT_FREQ", str(every)))

    return replace(job, runs=[with_checkpoints(run) for run in job.runs])


def _followed(followed: Sequence[_SubmittedJob]) -> Iterator[Event]:
    """Yield the events of all followed jobs until every run has ended."""
    next_states = 0.0
    while waiting := [submitted for submitted in followed if submitted.waiting]:
        # Ask Slurm first: when a job has ended, its events are complete.
        states = None
        if time.monotonic() >= next_states:
            states = _states()
            next_states = time.monotonic() + STATES_EVERY
        for submitted in waiting:
            yield from submitted.news()
            if states is not None:
                state = states.get(submitted.id, "unknown to squeue")
                ended = state in ENDED or submitted.id not in states
                if ended and submitted.is_gone:  # twice in a row, so it is not being requeued
                    yield from submitted.over(state)
                submitted.is_gone = ended
        time.sleep(EVENTS_EVERY)


def _states() -> dict[str, str] | None:
    """Return the states of this user's jobs by their ids; None if Slurm does not answer."""
    answer = _answer("squeue", "--me", "--noheader", "--array", "--states=all", "--format=%i %T")
    if answer is None:
        return None
    pairs = (line.partition(" ") for line in answer.splitlines())
    return {id: state.strip() for id, _, state in pairs}


def _largest_array() -> int:
    """Return the largest number of tasks of an array in Slurm's configuration."""
    answer = _answer("scontrol", "show", "config") or ""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", answer, re.MULTILINE)
    return max(1, int(found[1])) if found else MAX_ARRAY


def _answer(*words: str) -> str | None:
    """Return the stdout of a command of Slurm; None if the command fails."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def _notice(ids: Sequence[str]) -> str:
    arrays = " ".join(sorted({id.partition("_")[0] for id in ids}))
    return (
        f"still in Slurm: {counted(len(ids), 'job')}; to see the queue: `squeue --me`; to follow "
        f"again: the same command; to cancel: `scancel {arrays}`"
    )

"""How long the runs of a plan will take: from runs that are finished, or from a step timed now."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import train
from dassl.engine import build_trainer

from .execution import left, prepare_server
from .plan import Job, Run
from .results import outcome, read_facts


@dataclass(frozen=True)
class Estimate:
    """Seconds of all runs that are to do, side by side; ``unknown`` of them are not in it."""

    seconds: float
    unknown: int
    timed: bool

    def __str__(self) -> str:
        if not self.seconds:
            return "how long they take is not known before one is finished"
        minutes, seconds = divmod(round(self.seconds), 60)
        source = "a step timed now, without stage 1" if self.timed else "finished runs"
        more = f", {self.unknown} runs not counted" if self.unknown else ""
        return f"about {minutes} min {seconds:02} s, by {source}{more}"


def estimate(jobs: Sequence[Job], workers: int, time_steps: bool) -> Estimate:
    """Estimate what is to do; ``time_steps`` trains a few steps of each kind not yet finished."""
    known: dict[Any, list[float]] = {}
    todo: list[Run] = []
    for job in jobs:
        undone = left(job)
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
    context = prepare_server()
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_time_steps, args=(list(runs.items()), send))
    process.start()
    send.close()
    found: dict[Any, float] = {}
    with contextlib.suppress(EOFError):  # a kind that cannot be built is told when it is run
        while True:
            kind, seconds = receive.recv()
            found[kind] = seconds
    process.join()
    return found


def _time_steps(
    runs: Sequence[tuple[Any, Run]], send: multiprocessing.connection.Connection
) -> None:
    for kind, run in runs:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Exception):
            send.send((kind, _seconds(run)))


def _seconds(run: Run) -> float:
    """Seconds of a run: building it, its batches as fast as the second of them, and its test."""
    started = time.time()
    with tempfile.TemporaryDirectory() as folder:
        cfg = train.setup_cfg(train.build_parser().parse_args(list(run.argv)))
        cfg.defrost()
        cfg.OUTPUT_DIR = folder
        cfg.freeze()
        trainer = build_trainer(cfg)
        built = time.time() - started
        test = _step(trainer, trainer.test_loader, training=False) * len(trainer.test_loader)
        if not run.trains:
            return built + test
        steps = cfg.OPTIM.MAX_EPOCH * len(trainer.train_loader_x)
        return built + test + steps * _step(trainer, trainer.train_loader_x, training=True)


def _step(trainer: Any, loader: Any, training: bool) -> float:
    """Seconds of a batch, the second one where there are two."""
    trainer.set_model_mode("train" if training else "eval")
    trainer.num_batches = len(loader) + 1  # none of these is an epoch's last
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

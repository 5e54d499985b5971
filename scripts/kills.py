"""Runs of train.py in forks of this process, and six ways to end them at random places."""

from __future__ import annotations

import errno
import itertools
import os
import random
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import train
from anchoropt_plugin.errors import UserError

CALLS = ("fsync", "replace", "mkdir")
"""The functions of ``os`` that make files appear."""


class Ended(NamedTuple):
    """The end of a run: its exit status, negative for a signal, and its stderr."""

    status: int
    said: str


class Reference(NamedTuple):
    """An undisturbed run: folder, seconds, number of calls, bytes of the largest file."""

    folder: Path
    seconds: float
    calls: int
    largest: int


def _is_full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def at_call(count: int, act: Callable[[], None], after: bool = False) -> Callable[[], None]:
    """Return a preparation: the process will ``act`` at its ``count``-th call of ``CALLS``."""

    numbers = itertools.count(1)

    def around(call: Callable[[], Any]) -> Any:
        mine = next(numbers) == count
        if mine and not after:
            act()
        result = call()
        if mine and after:
            act()
        return result

    return lambda: _wrap_calls(around)


def _wrap_calls(around: Callable[[Callable[[], Any]], Any]) -> None:
    """Have each call of ``CALLS`` done by ``around``."""

    def wrapped(call: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: around(partial(call, *args, **kwargs))

    for name in CALLS:
        setattr(os, name, wrapped(getattr(os, name)))


def at_size(size: int, killed: bool) -> Callable[[], None]:
    """Return a preparation: a write beyond ``size`` bytes fails, or ends the process."""

    def prepare() -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if killed else signal.SIG_IGN)

    return prepare


def nothing() -> None:
    """Prepare an undisturbed run."""


def run(
    folder: Path,
    words: list[str],
    prepare: Callable[[], None] = nothing,
    strike: tuple[int, float] | None = None,
) -> Ended:
    """Run train.py in a fork of this process.

    Args:
        folder: the working directory.
        words: the command line.
        prepare: called first in the fork.
        strike: a signal, and the seconds until it is sent.
    """
    sys.stdout.flush()
    errors, to_parent = os.pipe()  # no file: the disk may be full
    child = os.fork()
    if child == 0:
        status = 70  # for an exception that nothing catches
        try:
            os.chdir(folder)
            with open(os.devnull, "wb") as null:  # noqa: PTH123
                os.dup2(null.fileno(), 1)
            os.dup2(to_parent, 2)
            prepare()
            status = train.main(words)
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(status)  # without the exit handlers of this process
    if strike is not None:
        number, seconds = strike
        time.sleep(seconds)
        os.kill(child, number)  # no other process can have the id before the wait below
    os.close(to_parent)
    with os.fdopen(errors, encoding="utf-8") as file:
        said = file.read()  # until the run has ended
    return Ended(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said)


def ways(rng: random.Random, reference: Reference) -> dict[str, Callable[[Path, list[str]], Ended]]:
    """Return the ways to end a run, each with a new random place."""
    seconds = rng.uniform(0, reference.seconds)
    count, after = rng.randint(1, reference.calls), rng.random() < 0.5
    size = round(reference.largest ** rng.random())  # small files are as likely as large ones

    killed_at_call = partial(signal.raise_signal, signal.SIGKILL)
    stopped_at_call = partial(signal.raise_signal, signal.SIGTERM)
    return {
        "SIGKILL, any time": lambda *r: run(*r, strike=(signal.SIGKILL, seconds)),
        "SIGTERM, any time": lambda *r: run(*r, strike=(signal.SIGTERM, seconds)),
        "SIGKILL at a call": lambda *r: run(*r, prepare=at_call(count, killed_at_call, after)),
        "SIGTERM at a call": lambda *r: run(*r, prepare=at_call(count, stopped_at_call, after)),
        "killed in a write": lambda *r: run(*r, prepare=at_size(size, killed=True)),
        "full disk": lambda *r: run(
            *r,
            prepare=at_size(size, killed=False) if after else at_call(count, _is_full),
        ),
    }


def is_proper(way: str, end: Ended) -> bool:
    """Tell whether a run that was ended in a way has the right status and message."""
    if end.status == 0:
        return True
    if way.startswith("SIGTERM"):
        # The signal itself ends the process if train.py has not begun.
        line = end.said.startswith("interrupted; ")
        return (end.status == 128 + signal.SIGTERM and line) or end.status == -signal.SIGTERM
    if way == "full disk":
        line = end.said.startswith("error: ") and end.said.find("\n") == len(end.said) - 1
        return end.status == 2 and line
    return end.status in (-signal.SIGKILL, -signal.SIGXFSZ)


def refer(folder: Path, words: list[str]) -> Reference:
    """Execute a run undisturbed, and measure it.

    Raises:
        UserError: the run fails.
    """
    calls = folder / "calls.txt"

    def noted(call: Callable[[], Any]) -> Any:
        with calls.open("a") as file:
            file.write(".")
        return call()

    start = time.monotonic()
    end = run(folder, words, prepare=lambda: _wrap_calls(noted))
    seconds = time.monotonic() - start
    if end.status:
        raise UserError(f"the undisturbed run fails: {end.said.strip()}")
    files = [path for path in (folder / "out").rglob("*") if path.is_file()]
    largest = max(path.stat().st_size for path in files)
    n_calls = len(calls.read_text())
    calls.unlink()
    return Reference(folder, seconds, n_calls, largest)

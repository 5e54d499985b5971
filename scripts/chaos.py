r"""Kill runs of train.py at random places, start them again, and compare what they leave.

    python scripts/chaos.py --kills 60 --seed 1

Each round starts a command, ends it in one of six ways, starts the same command again, ends that,
and so on, until one is let through. What lies in the output folder then, in the anchor cache and in
the data set's folder has to be what an undisturbed run leaves, bit for bit; only log.txt and
tensorboard/ tell the interruptions. The commands run in forks of this process, where everything is
imported; see docs/reliability.md.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import train
from anchoropt_plugin import checkpoints
from anchoropt_plugin.command_line import Parser, status_of
from anchoropt_plugin.errors import UserError
from datasets.embedded import write_digits

# Relative paths: a round runs in a folder of its own.
_COMMAND = [
    *("--root", "data", "--output-dir", "out", "--seed", "1"),
    *("--dataset-config-file", str(ROOT / "configs/datasets/digits.yaml")),
    *("--config-file", str(ROOT / "configs/trainers/CoOp/tiny.yaml")),
]
_KEYS = [
    *("TRAINER.ANCHOROPT.ANCHOR_CACHE", "anchors", "TRAINER.ANCHOROPT.ANCHOR_EPOCHS", "4"),
    *("DATASET.NUM_SHOTS", "4", "DATASET.SUBSAMPLE_CLASSES", "base", "OPTIM.MAX_EPOCH", "3"),
    *("DATALOADER.TRAIN_X.BATCH_SIZE", "8", "USE_CUDA", "False"),
]
_EVERY = ["TRAIN.CHECKPOINT_FREQ", "1"]
_SOFT = ["TRAINER.ANCHOROPT.POSITION", "soft", "TRAINER.ANCHOROPT.GUMBEL_TEMP_END", "0.2"]
_BEST = ["TEST.FINAL_MODEL", "best_val"]
RUNS = {
    "both stages": ["--trainer", "CoOp_AnchorOPT", *_KEYS, *_EVERY],
    "best of validation": ["--trainer", "CoOp_AnchorOPT", *_KEYS, *_EVERY, *_BEST],
    "best alone": ["--trainer", "CoOp_AnchorOPT", *_KEYS, *_BEST],
    "last epoch alone": ["--trainer", "CoOp_AnchorOPT", *_KEYS],
    "stage 1 with images": [
        *("--trainer", "CoOp_AnchorOPT", *_KEYS, *_EVERY),
        *("TRAINER.ANCHOROPT.ANCHOR_CE_WEIGHT", "1.0"),
    ],
    "soft positions": ["--trainer", "CoOp_AnchorOPT", *_KEYS, *_EVERY, *_SOFT],
    "MaPLe": ["--trainer", "MaPLe_AnchorOPT", *_KEYS, *_EVERY, "TRAINER.MAPLE.PROMPT_DEPTH", "2"],
    "CoOp alone": ["--trainer", "CoOp", *_KEYS, *_EVERY],
}
"""What is run, by name: all of them on the CPU, in a second or two each."""

_CALLS = ("fsync", "replace", "mkdir")
"""The calls of ``os`` by which files come to be."""
_NO_COMPARISON = ("log.txt", "tensorboard")


class Ended(NamedTuple):
    """How a run ended: its exit status, negative for a signal, and what it said on stderr."""

    status: int
    said: str


class Reference(NamedTuple):
    """An undisturbed run: its folder, seconds, the calls it made, the size of its largest file."""

    folder: Path
    seconds: float
    calls: int
    largest: int


def _end_myself(number: int) -> None:
    os.kill(os.getpid(), number)


def _is_full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def at_call(count: int, act: Callable[[], None], after: bool = False) -> Callable[[], None]:
    """What makes a process ``act`` at its ``count``-th call of ``_CALLS``, before it or after."""

    def prepare() -> None:
        seen = 0

        def wrapped(call: Callable[..., Any]) -> Callable[..., Any]:
            def counted(*args: Any, **kwargs: Any) -> Any:
                nonlocal seen
                seen += 1
                mine = seen == count
                if mine and not after:
                    act()
                result = call(*args, **kwargs)
                if mine and after:
                    act()
                return result

            return counted

        for name in _CALLS:
            setattr(os, name, wrapped(getattr(os, name)))

    return prepare


def at_size(size: int, killed: bool) -> Callable[[], None]:
    """What lets no file grow beyond ``size``: the write fails there, or ends the process."""

    def prepare() -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if killed else signal.SIG_IGN)

    return prepare


def nothing() -> None:
    """Prepare a run that is let through."""


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
        prepare: called in the fork, first.
        strike: a signal, and after how many seconds it is sent.
    """
    sys.stdout.flush()
    errors, to_parent = os.pipe()  # no file: a disk that is full has no room for what is said of it
    child = os.fork()
    if child == 0:
        status = 70  # a fault of this tool, or of what catches no exception
        try:
            os.chdir(folder)
            with open(os.devnull, "wb") as null:  # noqa: PTH123
                os.dup2(null.fileno(), 1)
            os.dup2(to_parent, 2)
            prepare()
            status = train.main(words)
        finally:
            os._exit(status)
    if strike is not None:
        number, seconds = strike
        time.sleep(seconds)
        os.kill(child, number)  # not waited for yet, so nobody else can have its number
    os.close(to_parent)
    with os.fdopen(errors, encoding="utf-8") as file:
        said = file.read()  # until the run has ended
    return Ended(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said)


def ways(rng: random.Random, reference: Reference) -> dict[str, Callable[[Path, list[str]], Ended]]:
    """The ways to end a run, each at a place drawn anew."""
    seconds = rng.uniform(0, reference.seconds)
    count, after = rng.randint(1, reference.calls), rng.random() < 0.5
    size = round(reference.largest ** rng.random())  # small files are as likely as large ones

    def killed_at_call() -> None:
        _end_myself(signal.SIGKILL)

    def stopped_at_call() -> None:
        _end_myself(signal.SIGTERM)

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
    """Whether a run that was ended that way ended as it should, if it was not through before."""
    if end.status == 0:
        return True
    if way.startswith("SIGTERM"):
        # Before train.py has begun, nobody can answer.
        line = end.said.startswith("interrupted; the same command goes on")
        return (end.status == 128 + signal.SIGTERM and line) or end.status == -signal.SIGTERM
    if way == "full disk":
        line = end.said.startswith("error: ") and end.said.find("\n") == len(end.said) - 1
        return end.status == 2 and line
    return end.status in (-signal.SIGKILL, -signal.SIGXFSZ)


def prepare_folder(folder: Path, digits: Path) -> Path:
    """A folder for a run: its own few-shot draws, the pictures of all."""
    (folder / "data" / "digits").mkdir(parents=True)
    (folder / "data" / "digits" / "images").symlink_to(digits / "images")
    for split in digits.glob("*.json"):
        shutil.copy(split, folder / "data" / "digits")
    return folder


def refer(folder: Path, words: list[str]) -> Reference:
    """Do a run undisturbed, and measure it.

    Raises:
        UserError: it fails.
    """
    calls = folder / "calls.txt"

    def count() -> None:
        def note(name: str) -> Callable[..., Any]:
            call = getattr(os, name)

            def noted(*args: Any, **kwargs: Any) -> Any:
                with calls.open("a") as file:
                    file.write(".")
                return call(*args, **kwargs)

            return noted

        for name in _CALLS:
            setattr(os, name, note(name))

    start = time.monotonic()
    end = run(folder, words, prepare=count)
    seconds = time.monotonic() - start
    if end.status:
        raise UserError(f"the undisturbed run fails: {end.said.strip()}")
    files = [path for path in (folder / "out").rglob("*") if path.is_file()]
    largest = max(path.stat().st_size for path in files)
    n_calls = len(calls.read_text())
    calls.unlink()
    return Reference(folder, seconds, n_calls, largest)


def left_by(folder: Path) -> dict[str, Path]:
    """What a run has left, by relative path, but for its logs."""
    return {
        path.relative_to(folder).as_posix(): path
        for part in ("out", "anchors", "data")
        for path in sorted((folder / part).rglob("*"))
        if path.is_file() and not any(word in path.as_posix() for word in _NO_COMPARISON)
    }


def differences(folder: Path, other: Path) -> list[str]:
    """Which files differ between what two runs have left; a last line if their tests do."""
    here, there = left_by(folder), left_by(other)
    found = sorted(here.keys() ^ there.keys())
    for name in sorted(here.keys() & there.keys()):
        if "pth.tar" in name:
            same = _equal(checkpoints.load(here[name]), checkpoints.load(there[name]))
        else:
            same = here[name].read_bytes() == there[name].read_bytes()
        if not same:
            found.append(name)
    if _results(folder) != _results(other):
        found.append("the last test's results")
    return found


def _results(folder: Path) -> list[str]:
    """What the last test of a run has found."""
    logs = sorted((folder / "out").glob("log.txt*"), key=lambda path: path.stat().st_mtime)
    lines = logs[-1].read_text(encoding="utf-8").splitlines()
    last = max(number for number, line in enumerate(lines) if line == "=> result")
    return [line for line in lines[last:] if line.startswith("* ")]


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        same_kind = isinstance(other, torch.Tensor) and one.dtype == other.dtype
        return same_kind and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_equal, one, other))
    return type(one) is type(other) and one == other


class Outcome(NamedTuple):
    """Of all rounds: ends by way, commands started again, faults in words."""

    kills: Counter[str]
    through: int
    resumes: int
    faults: list[str]


def chaos(scratch: Path, kills: int, seed: int, names: list[str] | None = None) -> Outcome:
    """Kill runs until ``kills`` of them were, and compare every one with an undisturbed one.

    Args:
        scratch: an empty folder.
        kills: how many runs are ended before they are through, at least.
        seed: draws when and how.
        names: of ``RUNS``; all by default.
    """
    rng = random.Random(seed)
    names = list(RUNS) if names is None else names
    digits = scratch / "digits"
    write_digits(digits)
    references: dict[str, Reference] = {}
    outcome = Outcome(Counter(), 0, 0, [])
    number = 0
    while sum(outcome.kills.values()) < kills:
        name = names[number % len(names)]
        words = [*_COMMAND, *RUNS[name]]
        if name not in references:
            folder = prepare_folder(scratch / f"reference-{len(references)}", digits)
            references[name] = refer(folder, words)
        reference = references[name]
        folder = prepare_folder(scratch / f"round-{number}", digits)
        outcome = _round(rng, reference, folder, words, f"round {number}, {name}", outcome)
        number += 1
    return outcome


def _round(
    rng: random.Random,
    reference: Reference,
    folder: Path,
    words: list[str],
    title: str,
    outcome: Outcome,
) -> Outcome:
    through, resumes = outcome.through, outcome.resumes
    history = []
    for _ in range(rng.randint(1, 5)):
        choice = ways(rng, reference)
        way = rng.choice(list(choice))
        end = choice[way](folder, words)
        history.append(f"{way}: {end.status}")
        if not is_proper(way, end):
            last = (end.said.strip().splitlines() or ["nothing"])[-1]
            outcome.faults.append(f"{title}, {way}: status {end.status}, it said: {last}")
        if end.status:
            outcome.kills[way] += 1
        else:
            through += 1
        resumes += 1
    end = run(folder, words)
    if end.status:
        outcome.faults.append(f"{title}: it does not go on: {end.said.strip()[-300:]}")
    else:
        found = differences(folder, reference.folder)
        if found:
            outcome.faults.append(f"{title}: differs in {', '.join(found)} after {history}")
    print(f"{title}: {', '.join(history)}", flush=True)
    return outcome._replace(through=through, resumes=resumes)


@contextlib.contextmanager
def _scratch(keep: str) -> Iterator[Path]:
    if keep:
        path = Path(keep).absolute()
        path.mkdir(parents=True)
        yield path
    else:
        with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
            yield Path(folder)


def main() -> int:
    """Run the command line; status 1 where anything differs."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60, help="at least so many (default: 60)")
    parser.add_argument("--seed", type=int, default=1, help="draws when and how (default: 1)")
    parser.add_argument("--runs", nargs="+", choices=RUNS, metavar="NAME", help="default: all")
    parser.add_argument("--keep", default="", help="a new folder to work in, which is kept")
    parser.add_argument("--json", default="", help="write the figures to this file, too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with _scratch(args.keep) as scratch:
        outcome = chaos(scratch, args.kills, args.seed, args.runs)
    for way, count in sorted(outcome.kills.items()):
        print(f"{count:5} {way}")
    for fault in outcome.faults:
        print(f"FAULT {fault}")
    kills, faults = sum(outcome.kills.values()), len(outcome.faults)
    print(
        f"kills: {kills}, resumes: {outcome.resumes}, through before the kill: {outcome.through}, "
        f"mismatches: {faults}"
    )
    if args.json:
        figures = {"kills": kills, "resumes": outcome.resumes, "mismatches": faults}
        Path(args.json).write_text(json.dumps(figures | {"ways": outcome.kills}, indent=1))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(status_of(main))

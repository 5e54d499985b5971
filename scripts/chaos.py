r"""Kill runs of train.py at random places, resume them, and compare their files.

    python scripts/chaos.py --kills 60 --seed 1

Each round starts a command, ends it in one of six ways, starts the same command again, ends it
again, and so on; the last start is not disturbed. Then the output folder, the anchor cache and the
data set's folder must be equal, bit for bit, to those of an undisturbed run. Only log.txt and
tensorboard/ may show the interruptions. The commands run in forks of this process, which has
imported everything; see docs/reliability.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from kills import Reference, is_proper, refer, run, ways

from anchoropt_plugin.datasets.embedded import write_digits
from anchoropt_plugin.files import checkpoints
from anchoropt_plugin.process.command_line import Parser, status_of

# Relative paths, because each round has its own working directory.
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
"""The commands by name. Each takes a second or two on the CPU."""

_NO_COMPARISON = ("log.txt", "tensorboard")


def prepare_folder(folder: Path, digits: Path) -> Path:
    """Make the folder of a run, with its own few-shot samples and the common images."""
    (folder / "data" / "digits").mkdir(parents=True)
    (folder / "data" / "digits" / "images").symlink_to(digits / "images")
    for split in digits.glob("*.json"):
        shutil.copy(split, folder / "data" / "digits")
    return folder


def files_of(folder: Path) -> dict[str, Path]:
    """Return the files of a run, without its logs, by their relative paths."""
    return {
        path.relative_to(folder).as_posix(): path
        for part in ("out", "anchors", "data")
        for path in sorted((folder / part).rglob("*"))
        if path.is_file() and not any(word in path.as_posix() for word in _NO_COMPARISON)
    }


def differences(folder: Path, other: Path) -> list[str]:
    """Return the names of the files that differ between two runs."""
    here, there = files_of(folder), files_of(other)
    found = sorted(here.keys() ^ there.keys())
    for name in sorted(here.keys() & there.keys()):
        if not _equal(_content(here[name], folder), _content(there[name], other)):
            found.append(name)
    return found


def _content(path: Path, folder: Path) -> Any:
    """Return what a file holds, without the place of its run, which is in predictions.csv."""
    if "pth.tar" in path.name:
        return checkpoints.load(path)
    return path.read_bytes().replace(os.fsencode(folder.resolve()), b"")


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        same_kind = isinstance(other, torch.Tensor) and one.dtype == other.dtype
        return same_kind and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_equal, one, other))
    return type(one) is type(other) and one == other


@dataclass
class Outcome:
    """The outcome of all rounds.

    Attributes:
        kills: the number of ended commands, by the way of their end.
        through: the number of commands that were finished before their end came.
        resumes: the number of commands that were started again.
        faults: the differences, and the commands that ended in a wrong way, as texts.
    """

    kills: Counter[str] = field(default_factory=Counter)
    through: int = 0
    resumes: int = 0
    faults: list[str] = field(default_factory=list)


def chaos(scratch: Path, kills: int, seed: int, names: list[str] | None = None) -> Outcome:
    """Kill at least ``kills`` commands, and compare every run with an undisturbed run.

    Args:
        scratch: an empty folder.
        kills: the number of commands to end before they are finished.
        seed: the seed of the times and ways of the kills.
        names: names of ``RUNS``; all by default.
    """
    rng = random.Random(seed)
    names = list(RUNS) if names is None else names
    digits = scratch / "digits"
    write_digits(digits)
    references: dict[str, Reference] = {}
    outcome = Outcome()
    number = 0
    while sum(outcome.kills.values()) < kills:
        name = names[number % len(names)]
        words = [*_COMMAND, *RUNS[name]]
        if name not in references:
            folder = prepare_folder(scratch / f"reference-{len(references)}", digits)
            references[name] = refer(folder, words)
        reference = references[name]
        folder = prepare_folder(scratch / f"round-{number}", digits)
        _round(rng, reference, folder, words, f"round {number}, {name}", outcome)
        number += 1
    return outcome


def _round(
    rng: random.Random,
    reference: Reference,
    folder: Path,
    words: list[str],
    title: str,
    outcome: Outcome,
) -> None:
    """Start a command, end it at random, resume it; add what happens to ``outcome``."""
    history = []
    for _ in range(rng.randint(1, 5)):
        choice = ways(rng, reference)
        way = rng.choice(list(choice))
        end = choice[way](folder, words)
        history.append(f"{way}: {end.status}")
        if not is_proper(way, end):
            last = (end.said.strip().splitlines() or ["nothing"])[-1]
            outcome.faults.append(f"{title}, {way}: status {end.status}, last line: {last}")
        if end.status:
            outcome.kills[way] += 1
        else:
            outcome.through += 1
        outcome.resumes += 1
    end = run(folder, words)
    if end.status:
        outcome.faults.append(f"{title}: it does not resume: {end.said.strip()[-300:]}")
    else:
        found = differences(folder, reference.folder)
        if found:
            outcome.faults.append(f"{title}: differs in {', '.join(found)} after {history}")
    print(f"{title}: {', '.join(history)}", flush=True)


def main() -> int:
    """Run the command line; return 1 if a file differs, else 0."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--kills", type=int, default=60, metavar="N", help="kill at least N commands (default: 60)")
    add("--seed", type=int, default=1, metavar="N", help="seed of times and ways (default: 1)")
    add("--runs", nargs="+", choices=RUNS, metavar="NAME", help="names of runs (default: all)")
    add("--keep", default="", metavar="FOLDER", help="work in this new folder, and keep it")
    add("--json", default="", metavar="FILE", help="also write the numbers to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.keep:
        Path(args.keep).mkdir(parents=True)
        scratch = contextlib.nullcontext(args.keep)
    else:
        scratch = tempfile.TemporaryDirectory(prefix="chaos-")
    with scratch as folder:
        outcome = chaos(Path(folder).absolute(), args.kills, args.seed, args.runs)
    for way, count in sorted(outcome.kills.items()):
        print(f"{count:5} {way}")
    for fault in outcome.faults:
        print(f"FAULT {fault}")
    kills, faults = sum(outcome.kills.values()), len(outcome.faults)
    print(
        f"kills: {kills}, resumes: {outcome.resumes}, finished before the kill: {outcome.through}, "
        f"mismatches: {faults}"
    )
    if args.json:
        figures = {"kills": kills, "resumes": outcome.resumes, "mismatches": faults}
        Path(args.json).write_text(json.dumps(figures | {"ways": outcome.kills}, indent=1))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(status_of(main))

"""Very many classes, images, runs or descriptions: how time grows, and whether memory is bounded.

    python benchmarks/load.py            # all cases, as make load
    python benchmarks/load.py runs       # one case

Each size is measured in a process of its own. Time is CPU time of one core, which a busy machine
changes little. Memory is the peak resident set minus the resident set after the imports. The
exponent is the slope of log time over log size: with 1, twice the size takes twice the time. The
command fails if a part of a second or more has an exponent above 1.2, or if memory exceeds the
bound in ``load_cases.py``.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from anchoropt_plugin.errors import UserError
from anchoropt_plugin.experiments.worker import peak_memory
from anchoropt_plugin.process.command_line import status_of
from benchmarks.command import parser_of
from benchmarks.load_cases import LOADS, MB, Load
from benchmarks.printing import markdown_table

STEEPEST = 1.2
"""The largest allowed exponent of time."""
SECONDS = 1.0
"""A part that takes less time than this may have any exponent, as its time is noisy."""


class Measured(NamedTuple):
    """The measurements of a case at one size: seconds by part, bytes of memory, bytes written."""

    size: int
    seconds: Mapping[str, float]
    memory: int
    written: int


def measure(name: str, size: int, folder: Path) -> Measured:
    """Measure a case in this process, which has measured nothing before."""
    before = peak_memory()
    seconds = {}
    with contextlib.redirect_stdout(io.StringIO()):
        parts = LOADS[name].parts(size, folder)
        next(parts)
        try:
            while True:
                start = time.process_time()
                part = next(parts)
                seconds[part] = time.process_time() - start
        except StopIteration as end:
            written = end.value or 0
    return Measured(size, seconds, peak_memory() - before, written)


def measured_apart(name: str, size: int) -> Measured:
    """Measure a case in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="load-") as folder:
        words = [sys.executable, __file__, name, "--sizes", str(size), "--here", folder]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
        done = subprocess.run(
            words, stdout=subprocess.PIPE, text=True, check=True, cwd=REPOSITORY, env=environment
        )
    return Measured(*json.loads(done.stdout.splitlines()[-1]))


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Return the slope of log value over log size, by least squares.

    >>> round(exponent([1, 2, 4], [3, 12, 48]), 6)
    2.0
    """
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def table(load: Load, found: Sequence[Measured]) -> tuple[str, list[str]]:
    """Return a Markdown table, and a line for each exceeded bound."""
    sizes = [one.size for one in found]
    rows, faults = [], []
    for part in found[-1].seconds:
        seconds = [one.seconds[part] for one in found]
        slope = exponent(sizes, seconds) if len(sizes) > 1 else math.nan
        rows.append([part, *(f"{value:.3g} s" for value in seconds), f"{slope:.2f}"])
        if slope > STEEPEST and seconds[-1] >= SECONDS:
            faults.append(f"the time of {part!r} grows with the power {slope:.2f} of {load.unit}")
    bounds = [load.bytes_more + load.bytes_each * size for size in sizes]
    memory = [one.memory for one in found]
    for name, numbers in {"memory": memory, "at most": bounds}.items():
        rows.append([name, *(f"{number / MB:,.0f} MB" for number in numbers), ""])
    for size, value, bound in zip(sizes, memory, bounds, strict=True):
        if value > bound:
            faults.append(f"{size:,} {load.unit} take {value / MB:,.0f} MB of memory")
    if found[-1].written:
        rows.append(["written", *(f"{one.written / MB:.2f} MB" for one in found), ""])
    heads = [load.unit, *(f"{size:,}" for size in sizes), "exponent"]
    return markdown_table(heads, rows), faults


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("names", nargs="*", metavar="CASE", help=f"one of {', '.join(LOADS)} (default: all)")
    add("--sizes", nargs="+", type=int, metavar="N", help="sizes to measure (default: the case's)")
    add("--here", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    return status_of(lambda: _report(parser.parse_args(arguments)))


def _report(args: argparse.Namespace) -> int:
    """Measure the cases, print their tables and return the exit status."""
    for name in args.names:
        if name not in LOADS:
            raise UserError(f"there is no case {name!r}: use one of {', '.join(LOADS)}")
    if args.here:
        print(json.dumps(measure(args.names[0], args.sizes[0], args.here)))
        return 0
    faults = []
    for name in args.names or LOADS:
        load = LOADS[name]
        found = [measured_apart(name, size) for size in args.sizes or load.sizes]
        text, new_faults = table(load, found)
        faults += new_faults
        print(f"\n### {name}\n\n{text}", flush=True)
    for fault in faults:
        print(f"FAULT {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

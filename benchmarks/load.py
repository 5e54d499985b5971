"""Very many classes, pictures, runs, descriptions: does time grow as they do, is memory bounded?

    python benchmarks/load.py            # all of them; make load
    python benchmarks/load.py runs       # one

Each size is measured in a process of its own. Time is a CPU core's, which a busy machine changes
little; memory is the largest resident set, beyond that after the imports. The exponent is the slope
of log time over log size: 1 where twice as much takes twice as long. It fails where the exponent of
a part that takes a second is above 1.2, or where memory is above what ``load_cases.py`` allows.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from benchmarks.load_cases import LOADS, MB, Load

STEEPEST = 1.2
"""The largest exponent of time,"""
SECONDS = 1.0
"""of what takes so long: below that it is noise."""


class Measured(NamedTuple):
    """What a case took at one size: seconds of its parts, bytes of memory, bytes written."""

    size: int
    seconds: Mapping[str, float]
    memory: int
    written: int


def measure(name: str, size: int, folder: Path) -> Measured:
    """Do a case in this process, which has done nothing before."""
    before = _peak()
    seconds = {}
    written = 0
    with contextlib.redirect_stdout(io.StringIO()):
        parts = LOADS[name].parts(size, folder)
        next(parts)
        start = time.process_time()
        while True:
            try:
                part = next(parts)
            except StopIteration as end:
                written = end.value or 0
                break
            seconds[part] = time.process_time() - start
            start = time.process_time()
    return Measured(size, seconds, _peak() - before, written)


def _peak() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measured_apart(name: str, size: int) -> Measured:
    """The same, in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="load-") as folder:
        words = [sys.executable, __file__, name, "--sizes", str(size), "--here", folder]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
        done = subprocess.run(
            words, stdout=subprocess.PIPE, text=True, check=True, cwd=REPOSITORY, env=environment
        )
    return Measured(*json.loads(done.stdout.splitlines()[-1]))


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The slope of log value over log size, by least squares.

    >>> round(exponent([1, 2, 4], [3, 12, 48]), 6)
    2.0
    """
    x, y = [[math.log(number) for number in numbers] for numbers in (sizes, values)]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return above / sum((a - mean_x) ** 2 for a in x)


def table(load: Load, found: Sequence[Measured]) -> tuple[list[str], list[str]]:
    """A Markdown table of what was measured, and what of it is too much."""
    sizes = [one.size for one in found]
    several = len(sizes) > 1
    faults = []
    heads = [f"{size:,}" for size in sizes]
    lines = [_row([load.unit, *heads, "exponent"]), _row(["---", *["---:"] * (len(sizes) + 1)])]
    for part in found[-1].seconds:
        seconds = [one.seconds[part] for one in found]
        slope = exponent(sizes, seconds) if several else math.nan
        lines.append(_row([part, *(f"{value:.3g} s" for value in seconds), f"{slope:.2f}"]))
        if slope > STEEPEST and seconds[-1] >= SECONDS:
            faults.append(f"the time of {part!r} grows with the power {slope:.2f} of {load.unit}")
    bounds = [load.bytes_more + load.bytes_each * size for size in sizes]
    memory = [one.memory for one in found]
    lines.append(_row(["memory", *(f"{value / MB:,.0f} MB" for value in memory), ""]))
    lines.append(_row(["at most", *(f"{value / MB:,.0f} MB" for value in bounds), ""]))
    for size, value, bound in zip(sizes, memory, bounds, strict=True):
        if value > bound:
            faults.append(f"{size:,} {load.unit} take {value / MB:,.0f} MB of memory")
    if found[-1].written:
        lines.append(_row(["written", *(f"{one.written / MB:.2f} MB" for one in found), ""]))
    return lines, faults


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="CASE", help=f"of {', '.join(LOADS)}")
    parser.add_argument(
        "--sizes", nargs="+", type=int, metavar="N", help="in place of a case's own"
    )
    parser.add_argument("--here", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    unknown = [name for name in args.names if name not in LOADS]
    if unknown:
        parser.error(f"there is no case {unknown[0]!r}: one of {', '.join(LOADS)}")
    if args.here:
        print(json.dumps(measure(args.names[0], args.sizes[0], args.here)))
        return 0
    faults = []
    for name in args.names or LOADS:
        load = LOADS[name]
        found = [measured_apart(name, size) for size in args.sizes or load.sizes]
        lines, of_this = table(load, found)
        faults += of_this
        print(f"\n### {name}\n", *lines, sep="\n", flush=True)
    for fault in faults:
        print(f"FAULT {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

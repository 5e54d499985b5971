"""The command line of a benchmark: measure its cases, print tables, store the results."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console

from anchoropt_plugin.errors import UserError
from anchoropt_plugin.process.command_line import Parser, status_of
from benchmarks.cost import VIT_B16, Sizes
from benchmarks.harness import DTYPES, EXCESS, TOLERANCE, Bench, Case, Row
from benchmarks.printing import CAPTION, describe, table_of

ROOM = "give --json another file"
"""Advice if the results cannot be written."""


def parser_of(description: str | None) -> Parser:
    """Return a parser that prints ``description``, a module's docstring, as it is."""
    return Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def add_json(parser: Parser) -> None:
    """Add the flag ``--json``."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="also store the results in FILE")


def prepare_json(file: Path | None) -> None:
    """Create the folder of ``--json`` before anything is measured.

    Raises:
        UserError: the file cannot be written.
    """
    if file and file.is_dir():
        raise UserError(f"--json {file} is a folder: give a file")
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(file.parent, os.W_OK):
            raise UserError(f"--json {file}: its folder is not writable; give another file")


def main(
    title: str,
    description: str | None,
    cases: Callable[[Bench], Iterator[Case]],
    arguments: Sequence[str] | None = None,
    sizes: Sizes = VIT_B16,
    *,
    has_classes: bool = True,
) -> int:
    """Run a benchmark from its command line.

    Args:
        title: the title of its tables.
        description: the text of ``--help``.
        cases: yields the cases to measure.
        arguments: the words of the command line, by default those of this process.
        sizes: the sizes of the CLIP.
        has_classes: whether the benchmark has a flag ``--classes``.

    Returns:
        The exit status: 1 if a side differs from the plain way, 2 for a wrong argument.
    """
    parser = parser_of(description)
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cpu", help="(default: cpu)")
    add("--dtype", choices=DTYPES, default="fp32", help="precision of the weights (default: fp32)")
    if has_classes:
        usual = "numbers of classes (default: those in docs/performance.md)"
        add("--classes", type=int, nargs="+", default=(), help=usual)
    add("--rounds", type=int, default=5, help="maximum number of timing rounds (default: 5)")
    help = "start no new round after this time; a longer step is timed only once (default: 8)"
    add("--seconds", type=float, default=8, help=help)
    add_json(parser)

    def command() -> int:
        args = parser.parse_args(arguments)
        classes = tuple(args.classes) if has_classes else ()
        if min(args.rounds, *classes, 1) < 1 or args.seconds < 0:
            raise UserError("--classes and --rounds must be at least 1, --seconds at least 0")
        if args.device == "cuda" and not torch.cuda.is_available():
            raise UserError("--device cuda: PyTorch finds no GPU; without --device the CPU is used")
        prepare_json(args.json)
        device, dtype = torch.device(args.device), DTYPES[args.dtype]
        bench = Bench(sizes, device, dtype, args.rounds, args.seconds, classes)
        return _run(title, bench, cases, args.json)

    return status_of(command, room=ROOM)


def _run(
    title: str, bench: Bench, cases: Callable[[Bench], Iterator[Case]], file: Path | None
) -> int:
    console = Console(width=None if Console().is_terminal else 120)
    machine = bench.machine()
    console.print(f"[bold]{title}[/] ({describe(machine)})")
    rows: list[Row] = []
    for case in cases(bench):
        with console.status(case.name):
            measured = bench.measure(case)
        console.print(table_of(case.name, measured))
        rows += measured
    console.print(CAPTION, style="dim")
    if file:
        content = {"title": title, "machine": machine, "rows": [asdict(row) for row in rows]}
        file.write_text(json.dumps(content, indent=1), encoding="utf-8")
    if all(row.passed for row in rows):
        return 0
    console.print(
        f"[bold red]✗[/] marks sides that differ from the plain way by more than {TOLERANCE:.0e} "
        f"or compute more than {EXCESS} times the FLOPs of the cost model"
    )
    return 1

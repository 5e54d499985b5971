"""The command line of a benchmark: measure its cases, print them, store them."""

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
from benchmarks.harness import DTYPES, EXCESS, TOLERANCE, Bench, Case, Row, Sizes
from benchmarks.printing import CAPTION, describe, table_of


def main(
    title: str,
    description: str | None,
    cases: Callable[[Bench], Iterator[Case]],
    arguments: Sequence[str] | None,
    sizes: Sizes,
    has_classes: bool = True,
) -> int:
    """Run a benchmark from its command line: print a table, store it where asked.

    Returns:
        The exit status: 1 where the two ways differ, 2 for an impossible argument.
    """
    parser = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cpu", help="(default: cpu)")
    add("--dtype", choices=DTYPES, default="fp32", help="of the weights (default: fp32)")
    if has_classes:
        usual = "(default: the numbers in docs/performance.md)"
        add("--classes", type=int, nargs="+", default=[], help=usual)
    add("--rounds", type=int, default=5, help="of timing, at most (default: 5)")
    help = "no further round after so many; a longer step is done only once (default: 8)"
    add("--seconds", type=float, default=8, help=help)
    add("--json", type=Path, metavar="FILE", help="store the results too")

    def command() -> int:
        args = parser.parse_args(arguments)
        classes = tuple(args.classes) if has_classes else ()
        _refuse_impossible(args, classes)
        device, dtype = torch.device(args.device), DTYPES[args.dtype]
        bench = Bench(sizes, device, dtype, args.rounds, args.seconds, classes)
        return _run(title, bench, cases, args.json)

    return status_of(command, room="--json wants another file")


def _refuse_impossible(args: argparse.Namespace, classes: Sequence[int]) -> None:
    """Raise what would else come up after minutes of measuring."""
    if min(args.rounds, *classes, 1) < 1 or args.seconds < 0:
        raise UserError("--classes and --rounds want whole numbers from 1 on, --seconds from 0")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch finds no GPU here; leave it out for the CPU")
    if args.json and args.json.is_dir():
        raise UserError(f"--json {args.json} is a folder: want a file in it")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(args.json.parent, os.W_OK):
            raise UserError(f"--json {args.json}: that folder cannot be written; give another")


def _run(
    title: str, bench: Bench, cases: Callable[[Bench], Iterator[Case]], file: Path | None
) -> int:
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
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
        f"[bold red]✗[/] marks rows that differ from the plain way by more than {TOLERANCE:.0e} or "
        f"compute more than {EXCESS} times what the cost model says"
    )
    return 1

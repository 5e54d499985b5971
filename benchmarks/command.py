"""The command line of a benchmark: measure its cases, print them, store them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.harness import DTYPES, EXCESS, TOLERANCE, Bench, Case, Row, Sizes
from benchmarks.printing import CAPTION, describe, table_of


def main(
    title: str,
    description: str | None,
    cases: Callable[[Bench], Iterator[Case]],
    arguments: Sequence[str] | None,
    sizes: Sizes,
) -> int:
    """Run a benchmark from its command line: print a table, store it where asked.

    Returns:
        The exit status: 1 where the two ways differ.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--dtype", choices=DTYPES, default="fp32")
    add("--classes", type=int, nargs="+", default=[], help="(default: those of the table)")
    add("--rounds", type=int, default=5, help="of timing, at most (default: 5)")
    add("--seconds", type=float, default=8, help="no further round after so many (default: 8)")
    add("--json", type=Path, metavar="FILE", help="store the results too")
    args = parser.parse_args(arguments)
    device, dtype = torch.device(args.device), DTYPES[args.dtype]
    bench = Bench(sizes, device, dtype, args.rounds, args.seconds, tuple(args.classes))
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
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        content = {"title": title, "machine": machine, "rows": [asdict(row) for row in rows]}
        args.json.write_text(json.dumps(content, indent=1), encoding="utf-8")
    if all(row.passed for row in rows):
        return 0
    console.print(
        f"[bold red]✗[/] marks rows that differ from the plain way by more than {TOLERANCE:.0e} or "
        f"compute more than {EXCESS} times what the cost model says"
    )
    return 1

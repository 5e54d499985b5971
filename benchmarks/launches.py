"""Launches and waits of the host in a step: the plain way, cut at EOT, and ours.

    python benchmarks/launches.py                # on a pretend GPU
    python benchmarks/launches.py --sides ours   # ours alone

A launch is an operator that is no view: on CUDA each starts at least one kernel. A wait is a place
where the host stops until the GPU is done. Both are counted, not measured: the second step of
three, on CLIP with the depth of ViT-B/16. Without a pretend GPU, launches are counted on the CPU,
in fp32 alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from anchoropt_plugin.process.command_line import status_of
from benchmarks import estimate, launch_steps
from benchmarks.command import ROOM, add_json, parser_of, prepare_json
from benchmarks.launch_steps import CUT, HOSTS, OURS, PLAIN, PRECISIONS, SIDES, STEPS, Snapshot
from benchmarks.pretend_gpu import Record, pretend_gpu, unavailable
from benchmarks.printing import markdown_table

Step = Callable[[str, Snapshot], None]
"""Takes a device and a function to call between two steps."""


class Row(NamedTuple):
    """A step, one way of doing it, its launches, and its waits of the host (None: not counted)."""

    name: str
    side: str
    launches: int
    waits: int | None


def steps(sides: Sequence[str] = SIDES, on_gpu: bool = True) -> Iterator[tuple[str, str, Step]]:
    """Each step with its name and side; without a GPU a trainer runs in fp32."""
    precisions = PRECISIONS if on_gpu else PRECISIONS[:1]
    for side in sides:
        yield "text branch", side, partial(launch_steps.text_branch, side)
    yield "position matrix", OURS, launch_steps.position_matrix
    # Where there are no frozen prompts to encode once, cut launches what the plain way launches.
    two_sides = [side for side in sides if side != CUT]
    for side in two_sides:
        yield "stage 1", side, partial(launch_steps.stage_one, side)
    for host in HOSTS:
        for precision in precisions:
            for side in sides:
                run = partial(launch_steps.run, f"{host}_AnchorOPT", precision, side)
                yield f"{host}_AnchorOPT, {precision}", side, run
        default = "fp16" if on_gpu else "fp32"
        for side in two_sides:
            yield f"{host}, {default}", side, partial(launch_steps.run, host, default, side)
    for trainer in ("CoOp_AnchorOPT", "MaPLe_AnchorOPT"):
        for side in sides:
            run = partial(launch_steps.run, trainer, "fp32", side, is_training=False)
            yield f"evaluation of {trainer}", side, run


def counted(name: str, side: str, step: Step, on_gpu: bool) -> Row:
    """The launches and waits of the second step of three."""
    record = Record()
    seen: list[tuple[int, int]] = []

    def between() -> None:
        seen.append((record.launches.total(), record.waits.total()))

    if on_gpu:
        with pretend_gpu() as record:
            step("cuda", between)
    else:
        with OnTheCPU(record):
            step("cpu", between)
    launches, waits = (after - before for before, after in zip(*seen[1:3], strict=True))
    # Between two snapshots of stage 1 there is an epoch.
    launches = launches // STEPS if name == "stage 1" else launches
    return Row(name, side, launches, waits if on_gpu else None)


class OnTheCPU(TorchDispatchMode):
    """Counts the launches of operators on the CPU."""

    def __init__(self, record: Record) -> None:
        super().__init__()
        self.record = record

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if not func.is_view:
            self.record.launch(func._schema.name.removeprefix("aten::"), None)
        return func(*args, **(kwargs or {}))


def table(rows: Sequence[Row]) -> str:
    """The counts in Markdown: launches, and waits in brackets."""
    sides = [side for side in SIDES if any(row.side == side for row in rows)]
    found = {(row.name, row.side): row for row in rows}
    names = dict.fromkeys(row.name for row in rows)
    cells = [[name, *(_cell(found.get((name, side))) for side in sides)] for name in names]
    return markdown_table(["a step", *sides], cells)


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    waits = "" if row.waits is None else f" ({row.waits})"
    return f"{row.launches:,}{waits}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("--sides", nargs="+", choices=SIDES, default=SIDES, help="(default: all)")
    add("--device", choices=("pretend", "cpu"), help="(default: pretend where there is one)")
    add_json(parser)

    def command() -> int:
        args = parser.parse_args(arguments)
        prepare_json(args.json)
        on_gpu = (args.device or ("cpu" if unavailable() else "pretend")) == "pretend"
        if not on_gpu and unavailable():
            print(f"no pretend GPU, so no waits and no half precision: {unavailable()}\n")
        torch.set_num_threads(1)
        rows = [counted(*step, on_gpu) for step in steps(args.sides, on_gpu)]
        print(f"Launches (waits; of stage 1 those of {STEPS} steps, an epoch)\n\n{table(rows)}")
        if {PLAIN, OURS} <= set(args.sides):
            launches = {(row.name, row.side): row.launches for row in rows}
            print(f"\nEstimate in ms: {estimate.LEGEND}\n\n{estimate.tables(launches)}")
        if args.json:
            args.json.write_text(json.dumps(rows, indent=0))
        return 0

    return status_of(command, room=ROOM)


if __name__ == "__main__":
    sys.exit(main())

"""What ``compare.py`` and ``ablate.py`` have in common: flags, and from a plan to its report."""

from __future__ import annotations

import argparse
import contextlib
import re
import shlex
import sys
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from anchoropt_plugin import UserError
from anchoropt_plugin.config.merge import read_yaml
from anchoropt_plugin.errors import nearest
from anchoropt_plugin.process.command_line import Parser
from anchoropt_plugin.process.folder_lock import locked_folder
from experiments.experiment import Experiment

from .estimate import Estimate, estimate
from .execution import Event, left
from .executors import EXECUTORS, add_arguments
from .files import REPOSITORY, find
from .formats import markdown, rich_table
from .plan import Job, plan
from .progress import follow, tell_failures
from .report import write_report
from .results import results
from .tables import tables

KEY = re.compile(r"[A-Z0-9_]+(\.[A-Z0-9_]+)+")
"""What a config key looks like."""


def build_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """Return a parser with the flags that both command lines have."""
    parser = Parser(
        prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--protocol", metavar="NAME", help="of configs/protocols (default: base2new)")
    add("--datasets", nargs="+", metavar="NAME", help="of configs/datasets, to train on")
    add("--shots", nargs="+", type=int, metavar="N", help="pictures a class")
    add("--seeds", nargs="+", type=int, metavar="N")
    add("--root", type=Path, default=REPOSITORY / "data", help="data folder (default: data)")
    add("--output-dir", type=Path, help="of all runs and the report (default: in output/)")
    add("--executor", choices=sorted(EXECUTORS), default="local", help="where runs are done")
    add("--jobs", type=int, metavar="N", help="at a time (default: one a GPU, or one a CPU core)")
    add("--dry-run", action="store_true", help="tell what would be run, and how long it takes")
    add("--markdown", type=Path, metavar="FILE", help="write the tables there too")
    add_arguments(parser)
    return parser


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse flags and the KEY VALUE pairs behind them, which end a flag of several words, too.

    All words are kept as ``command``, to be told in the report.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser.add_argument(
        "opts",
        nargs="*",
        metavar="KEY VALUE",
        help="config keys and values for all runs, after all flags: OPTIM.MAX_EPOCH 10",
    )
    at = next((at for at, word in enumerate(argv) if KEY.fullmatch(word)), len(argv))
    args = parser.parse_args(argv[:at])
    if args.opts:
        raise UserError(f"{args.opts[0]!r} is neither a flag nor a config key; see --help")
    args.opts = list(argv[at:])
    args.command = shlex.join(["python", f"scripts/{parser.prog}", *argv])
    return args


def chosen(args: argparse.Namespace, preset: dict[str, Any], name: str, default: Any = None) -> Any:
    """What the command line says, or the preset, or nobody."""
    given = getattr(args, name)
    return given if given is not None else preset.get(name, default)


def read_preset(folder: Path, name: str | None, keys: Sequence[str]) -> dict[str, Any]:
    """A preset's yaml, or nothing.

    Raises:
        UserError: there is no such preset, or it has a key that is unknown.
    """
    if name is None:
        return {}
    path = find(folder, name, "preset")
    values = read_yaml(path)
    for key in values:
        if key not in keys:
            raise UserError(f"{path}: unknown key {key!r}{nearest(key, keys)}")
    return values


def run_experiment(
    experiment: Experiment,
    args: argparse.Namespace,
    more: Callable[[Sequence[Job], pd.DataFrame], pd.DataFrame] | None = None,
) -> int:
    """Plan, run what is not finished, and report; 1 where runs failed, else 0.

    Args:
        experiment: what is run.
        args: what ``parse`` read.
        more: makes further rows of those of the runs.

    Raises:
        UserError: the plan cannot be, or another command works in that folder; nothing is written.
    """
    console = Console()
    place = EXECUTORS[args.executor]
    executor = place.executor(args)
    workers = place.workers() if args.jobs is None else args.jobs
    if workers < 1:
        raise UserError(f"--jobs is {workers}: at least one run at a time")
    jobs = plan(experiment.protocol, experiment.methods, args.root, args.output_dir, args.opts)
    total = sum(len(job.runs) for job in jobs)
    console.print(f"[bold]{experiment.title}[/bold]: {experiment.protocol.title}")
    console.print(_of_plan(jobs, total, workers, estimate(jobs, workers, args.dry_run)))
    if args.dry_run:
        return 0
    is_new = not args.output_dir.exists()
    try:
        with locked_folder(args.output_dir):
            return _run_and_report(experiment, args, jobs, executor(jobs, workers), more, console)
    finally:
        if is_new:
            with contextlib.suppress(OSError):  # not empty
                args.output_dir.rmdir()


def _run_and_report(
    experiment: Experiment,
    args: argparse.Namespace,
    jobs: Sequence[Job],
    happenings: Generator[Event, None, None],
    more: Callable[[Sequence[Job], pd.DataFrame], pd.DataFrame] | None,
    console: Console,
) -> int:
    started = time.time()
    todo = sum(len(left(job)) for job in jobs)
    with contextlib.closing(happenings) as events:
        failed = follow(events, todo, console) if todo else []
    table = results(jobs)
    tell_failures(failed, console)
    if table.empty:
        console.print("no run is finished: there is nothing to report")
        return 1
    if more is not None and not failed:
        table = pd.concat([table, more(jobs, table)], ignore_index=True)
    made = tables(table, experiment.protocol)
    for one in made:
        console.print(rich_table(one))
    page = write_report(
        experiment, jobs, table, made, failed, args.output_dir, args.command, time.time() - started
    )
    if args.markdown:
        args.markdown.parent.mkdir(parents=True, exist_ok=True)
        args.markdown.write_text(markdown(experiment, made, table, args.command), encoding="utf-8")
    console.print(f"Report: {page}", soft_wrap=True)
    return 1 if failed else 0


def _of_plan(jobs: Sequence[Job], total: int, workers: int, cost: Estimate) -> str:
    todo = sum(len(left(job)) for job in jobs)
    at_once = f"{min(workers, todo)} at a time" if workers > 1 else "one after another"
    text = f"{total} runs, {total - todo} of them finished; {todo} to do, {at_once}"
    return f"{text}; {cost}" if todo else text

"""What the command lines of experiments share: presets, and the way from a plan to its report."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from ..config.merge import read_yaml
from ..errors import UserError, nearest
from ..process.folder_lock import locked_folder
from .checkout import CHECKOUT
from .estimate import Estimate, estimate
from .execution import Event, unfinished
from .executors import EXECUTORS
from .experiment import Experiment
from .files import find
from .fork_server import start_server
from .formats import ALL_IMAGES, caption_of, counted, default_values, markdown, rich_table
from .own_repository import own_repository
from .plan import Job, plan
from .preflight import check_parts, check_root
from .progress import follow, print_failures
from .protocols import Protocol, read_protocol
from .report import write_report
from .repository import Repository
from .results import results
from .same_inputs import check_same_inputs
from .tables import tables

SETTINGS = "settings"
"""The key of a preset with config keys and values for all runs."""
CODE = ["commit", "anchoropt_plugin"]
"""The columns of results with the versions of the code: of the trainers, and of this package."""


def with_preset(
    args: argparse.Namespace, presets: Path | None = None, keys: Sequence[str] = ()
) -> argparse.Namespace:
    """Set what no flag has set to the value of the preset.

    Args:
        args: the arguments.
        presets: the folder of the presets that ``--preset`` names.
        keys: the keys that a preset may have, besides ``settings``; a key that nothing sets is
            None.

    Raises:
        UserError: the preset or one of its keys is unknown.
    """
    path = find(presets, args.preset, "preset") if presets and args.preset else None
    preset = read_yaml(path) if path else {}
    known = [*keys, SETTINGS]
    for key in preset:
        if key not in known:
            raise UserError(f"{path}: unknown key {key!r}{nearest(key, known)}")
    settings = preset.get(SETTINGS, {})
    if not isinstance(settings, dict):
        raise UserError(f"{path}: {SETTINGS} is not a section of `KEY: value` lines")
    args.opts = [*(str(word) for pair in settings.items() for word in pair), *args.opts]
    for key in keys:
        if getattr(args, key, None) is None:
            setattr(args, key, preset.get(key))
    return args


def repository_of(args: argparse.Namespace) -> Repository:
    """Return the repository that the flags name, by default this package's checkout.

    The data sets that ``--dataset-config`` names are added to ``args.datasets``.

    Raises:
        UserError: the folder has no ``train.py``, or flags do not belong together.
    """
    files = args.dataset_config or []
    if args.repository is None:
        if files:
            raise UserError("--dataset-config belongs to --repository: use --datasets")
        return CHECKOUT
    if args.preset:
        raise UserError("--preset is for the trainers of anchoropt-plugin, not for --repository")
    repository = own_repository(args.repository, files)
    args.datasets = [*(args.datasets or []), *(name for name, _ in repository.data_sets)] or None
    return repository


def protocol_of(args: argparse.Namespace, **defaults: Sequence[Any]) -> Protocol:
    """Return the protocol that the flags ask for.

    Args:
        args: the arguments.
        defaults: data sets, shots or seeds without a flag, instead of the protocol's own.
    """
    if any(seed < 0 for seed in args.seeds or ()):
        raise UserError(f"--seeds {min(args.seeds)}: a negative seed fixes no random numbers")
    wrong = next((n for n in args.shots or () if n < 1 and n != ALL_IMAGES), None)
    if wrong is not None:
        raise UserError(f"--shots {wrong}: give 1 or more, or {ALL_IMAGES} for all images")
    changes = {k: getattr(args, k) or defaults.get(k) for k in ("datasets", "shots", "seeds")}
    return read_protocol(args.protocol or "base2new").with_changes(changes)


def run_experiment(experiment: Experiment, args: argparse.Namespace, folder: str) -> int:
    """Plan an experiment, execute the unfinished runs and write the report.

    Args:
        experiment: the experiment.
        args: the arguments, with the preset's.
        folder: the default of ``--output-dir``, in ``output/``.

    Returns:
        The exit status: 1 if runs failed, else 0.

    Raises:
        UserError: the plan is invalid, or another command uses the folder; nothing is written.
    """
    console = Console()
    repository = experiment.methods[0].repository
    args.root = (args.root or repository.folder / "data").absolute()
    args.output_dir = (args.output_dir or repository.folder / "output" / folder).absolute()
    executor, at_once = EXECUTORS[args.executor](args)
    workers = at_once if args.jobs is None else args.jobs
    if workers < 1:
        raise UserError(f"--jobs is {workers}: it must be 1 or more")
    if not args.dry_run:
        start_server(repository)
    if args.output_dir.is_dir():
        console.print(f"Reading the runs in {args.output_dir} …", soft_wrap=True)
    jobs = plan(experiment.protocol, experiment.methods, args.root, args.output_dir, args.opts)
    todo = [run for job in jobs for run in unfinished(job)]
    check_root(todo, args.root)
    if not args.dry_run:
        experiment.check(jobs)
    console.print(f"[bold]{experiment.title}[/bold]: {experiment.protocol.title}")
    names = [*(method.name for method in experiment.methods), *experiment.computed]
    console.print(f"Rows: {', '.join(names)}")
    for text in (experiment.about, *default_values(experiment.methods)):
        console.print(text)
    cost = estimate(jobs, workers, args.dry_run)
    console.print(_summary(jobs, workers, cost))
    if args.dry_run:
        if cost.kinds:
            console.print(cost.table())
        experiment.check(jobs)
        check_same_inputs(jobs)
        for kind in cost.kinds:
            if kind.fault:
                raise UserError(f"{kind.run}: {kind.fault}")
        return 0
    is_new = not args.output_dir.exists()
    try:
        with locked_folder(args.output_dir):
            if todo:
                console.print("Before the first run: checking data, weights and trainers …")
            notes, planned = check_parts(todo)
            check_same_inputs(jobs, planned)
            for note in notes:
                console.print(note)
            return _run_and_report(experiment, args, jobs, executor(jobs, workers), console)
    finally:
        if is_new:
            with contextlib.suppress(OSError):  # not empty
                args.output_dir.rmdir()


def _run_and_report(
    experiment: Experiment,
    args: argparse.Namespace,
    jobs: Sequence[Job],
    events: Generator[Event, None, None],
    console: Console,
) -> int:
    started, command = time.time(), args.command_line
    todo = sum(len(unfinished(job)) for job in jobs)
    with contextlib.closing(events):
        failed = follow(events, todo, console) if todo else []
    rows = results(jobs)
    print_failures(failed, console)
    check_same_inputs(jobs)  # again: something may have been changed while the runs were going on
    versions = rows.reindex(columns=CODE).dropna().drop_duplicates()
    if len(versions) > 1:
        named = ", ".join(dict.fromkeys(filter(None, versions.to_numpy().ravel())))
        console.print(
            f"Note: the runs are of {len(versions)} versions of the code ({named}): their numbers "
            "may not belong together"
        )
    if rows.empty:
        console.print("no run is finished: there is nothing to report")
        return 1
    if not failed:
        computed = [more(jobs, rows) for more in experiment.computed.values()]
        rows = pd.concat([rows, *computed], ignore_index=True)
    own = experiment.methods[0].repository != CHECKOUT
    made = tables(rows, experiment.protocol, published=not own)
    for table in made:
        console.print(rich_table(table))
    console.print(caption_of(experiment, made))
    page = write_report(
        experiment,
        jobs,
        rows,
        made,
        failed,
        args.output_dir,
        command,
        time.time() - started,
    )
    if args.markdown:
        args.markdown.parent.mkdir(parents=True, exist_ok=True)
        args.markdown.write_text(markdown(experiment, made, rows, command), encoding="utf-8")
    console.print(f"Report: {page}", soft_wrap=True)
    return 1 if failed else 0


def _summary(jobs: Sequence[Job], workers: int, cost: Estimate) -> str:
    total = sum(len(job.runs) for job in jobs)
    undone = [len(unfinished(job)) for job in jobs]
    todo, busy = sum(undone), sum(map(bool, undone))
    several = f"{counted(min(workers, busy), 'job')} at a time"
    at_once = several if workers > 1 else "one after another"
    text = f"{counted(total, 'run')}, {total - todo} of them finished; {todo} to do, {at_once}"
    return f"{text}; {cost}" if todo else text

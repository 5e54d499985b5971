"""Where runs can be done, and the flags for it: on this machine, or on a Slurm cluster."""

from __future__ import annotations

import argparse
import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from anchoropt_plugin import UserError

from .execution import Executor, default_workers, run_locally
from .slurm import Slurm

FLAGS: dict[str, tuple[str, type, str, str]] = {
    "--partition": ("partition", str, "NAME", "to submit to (default: the cluster's)"),
    "--time": ("time", int, "MINUTES", "of a job, after which it is requeued (default: 240)"),
    "--gpus": ("gpus_per_node", int, "N", "of a job"),
    "--cpus": ("cpus_per_task", int, "N", "cores of a job"),
    "--memory": ("mem", str, "SIZE", "of a job, as 16G"),
}
"""Flags, and submitit's parameters for them."""
TIME = 240
AT_ONCE = 256
"""Tasks of an array that Slurm may start at a time, where nobody says."""


class Place(NamedTuple):
    """How to make its executor of the command line, and how many runs it does at a time."""

    executor: Callable[[argparse.Namespace], Executor]
    workers: Callable[[], int]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``--executor slurm``."""
    group = parser.add_argument_group("with --executor slurm, where --jobs limits its arrays")
    for flag, (parameter, kind, metavar, says) in FLAGS.items():
        group.add_argument(flag, dest=f"slurm_{parameter}", type=kind, metavar=metavar, help=says)
    group.add_argument(
        "--sbatch",
        dest="slurm_further",
        action="append",
        metavar="KEY=VALUE",
        help="a further option of sbatch, as account=me; may be repeated",
    )


def _given(args: argparse.Namespace) -> list[str]:
    """The flags of ``--executor slurm`` that are on the command line."""
    dests = {flag: f"slurm_{parameter}" for flag, (parameter, *_) in FLAGS.items()}
    dests["--sbatch"] = "slurm_further"
    return [flag for flag, dest in dests.items() if getattr(args, dest) is not None]


def _slurm(args: argparse.Namespace) -> Executor:
    """The executor that the command line asks for.

    Raises:
        UserError: submitit or Slurm's commands are missing, or an option cannot be.
    """
    if importlib.util.find_spec("submitit") is None:
        raise UserError("--executor slurm needs submitit: pip install -e '.[slurm]'")
    for program in ("sbatch", "squeue"):
        if shutil.which(program) is None:
            raise UserError(
                f"--executor slurm: there is no {program} here; log in where jobs are submitted"
            )
    parameters: dict[str, Any] = {"time": TIME}
    for parameter, *_ in FLAGS.values():
        value = getattr(args, f"slurm_{parameter}")
        if value is not None:
            parameters[parameter] = value
    further = [pair.partition("=") for pair in args.slurm_further or ()]
    for key, equals, _ in further:
        if not key or not equals:
            raise UserError(f"--sbatch {key or equals!r}: KEY=VALUE is wanted, as account=me")
    options = {**parameters, "additional_parameters": {key: value for key, _, value in further}}
    return Slurm(options, Path(args.output_dir).absolute() / "slurm")


def _local(args: argparse.Namespace) -> Executor:
    flags = _given(args)
    if flags:
        raise UserError(f"{', '.join(flags)} says nothing without --executor slurm")
    return run_locally


EXECUTORS = {"local": Place(_local, default_workers), "slurm": Place(_slurm, lambda: AT_ONCE)}

"""The places where runs are executed, and their flags: this machine, or a Slurm cluster."""

from __future__ import annotations

import argparse
import importlib.util
import shutil
from pathlib import Path
from typing import Any

from anchoropt_plugin import UserError

from .execution import Executor, default_workers, run_locally
from .slurm import Slurm

FLAGS: dict[str, tuple[str, type, str, str]] = {
    "--partition": ("partition", str, "NAME", "partition of the jobs (default: the cluster's)"),
    "--time": ("time", int, "MINUTES", "limit of a job, which is then requeued (default: 240)"),
    "--gpus": ("gpus_per_node", int, "N", "GPUs per job"),
    "--cpus": ("cpus_per_task", int, "N", "CPU cores per job"),
    "--memory": ("mem", str, "SIZE", "memory per job, for example 16G"),
}
"""Flags, and for each flag submitit's parameter, the type, the metavar and the help."""
TIME = 240
AT_ONCE = 256
"""The default number of tasks of an array that Slurm executes at a time."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``--executor slurm``."""
    group = parser.add_argument_group("with --executor slurm (--jobs limits the tasks of an array)")
    for flag, (parameter, kind, metavar, says) in FLAGS.items():
        group.add_argument(flag, dest=f"slurm_{parameter}", type=kind, metavar=metavar, help=says)
    group.add_argument(
        "--sbatch",
        dest="slurm_further",
        action="append",
        metavar="KEY=VALUE",
        help="another option of sbatch, for example account=me; may be repeated",
    )


def _given(args: argparse.Namespace) -> list[str]:
    """Return the flags of ``--executor slurm`` that are on the command line."""
    dests = {flag: f"slurm_{parameter}" for flag, (parameter, *_) in FLAGS.items()}
    dests["--sbatch"] = "slurm_further"
    return [flag for flag, dest in dests.items() if getattr(args, dest) is not None]


def _slurm(args: argparse.Namespace) -> tuple[Executor, int]:
    """Return an executor on Slurm, and the default number of jobs at a time.

    Raises:
        UserError: submitit or a command of Slurm is missing, or an option is invalid.
    """
    if importlib.util.find_spec("submitit") is None:
        raise UserError("--executor slurm needs submitit: pip install -e '.[slurm]'")
    for program in ("sbatch", "squeue"):
        if shutil.which(program) is None:
            raise UserError(
                f"--executor slurm: this machine has no {program}; log in to a machine that can "
                "submit jobs"
            )
    parameters: dict[str, Any] = {"time": TIME}
    for parameter, *_ in FLAGS.values():
        value = getattr(args, f"slurm_{parameter}")
        if value is not None:
            parameters[parameter] = value
    further = [pair.partition("=") for pair in args.slurm_further or ()]
    for key, equals, _ in further:
        if not key or not equals:
            raise UserError(f"--sbatch {key or equals!r}: give KEY=VALUE, for example account=me")
    options = {**parameters, "additional_parameters": {key: value for key, _, value in further}}
    return Slurm(options, Path(args.output_dir).absolute() / "slurm"), AT_ONCE


def _local(args: argparse.Namespace) -> tuple[Executor, int]:
    """Return an executor on this machine, and the default number of jobs at a time."""
    flags = _given(args)
    if flags:
        raise UserError(f"{', '.join(flags)} needs --executor slurm")
    return run_locally, default_workers()


EXECUTORS = {"local": _local, "slurm": _slurm}
"""The places by name: what makes the executor that the command line asks for."""

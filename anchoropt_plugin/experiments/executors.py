"""The places where runs are executed: this machine, or a Slurm cluster."""

from __future__ import annotations

import argparse
import importlib.util
import shutil
from pathlib import Path
from typing import Any

from ..errors import UserError
from .execution import Executor, default_workers, run_locally
from .flags import SLURM_FLAGS
from .slurm import Slurm

TIME = 240
AT_ONCE = 256
"""The default number of tasks of an array that Slurm executes at a time."""


def _given(args: argparse.Namespace) -> list[str]:
    """Return the flags of ``--executor slurm`` that are on the command line."""
    dests = {flag: f"slurm_{parameter}" for flag, (parameter, *_) in SLURM_FLAGS.items()}
    dests["--sbatch"] = "slurm_further"
    return [flag for flag, dest in dests.items() if getattr(args, dest) is not None]


def _slurm(args: argparse.Namespace) -> tuple[Executor, int]:
    """Return an executor on Slurm, and the default number of jobs at a time.

    Raises:
        UserError: submitit or a command of Slurm is missing, or an option is invalid.
    """
    if not args.dry_run and importlib.util.find_spec("submitit") is None:
        raise UserError("--executor slurm needs submitit: pip install 'anchoropt-plugin[slurm]'")
    for program in ("sbatch", "squeue"):
        if not args.dry_run and shutil.which(program) is None:
            raise UserError(
                f"--executor slurm: {program} is not installed on this machine: log in to one "
                "that can submit jobs, or leave out --executor slurm"
            )
    parameters: dict[str, Any] = {"time": TIME}
    for parameter, *_ in SLURM_FLAGS.values():
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

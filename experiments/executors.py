"""Where runs can be done: on this machine, or on a Slurm cluster."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NamedTuple

from anchoropt_plugin import UserError

from . import slurm
from .execution import Executor, default_workers, run_locally


class Place(NamedTuple):
    """How to make its executor of the command line, and how many runs it does at a time."""

    executor: Callable[[argparse.Namespace], Executor]
    workers: Callable[[], int]


def _local(args: argparse.Namespace) -> Executor:
    flags = slurm.given(args)
    if flags:
        raise UserError(f"{', '.join(flags)} says nothing without --executor slurm")
    return run_locally


EXECUTORS = {
    "local": Place(_local, default_workers),
    "slurm": Place(slurm.slurm_executor, lambda: slurm.AT_ONCE),
}

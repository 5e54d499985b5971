"""The flags of experiments. This module imports none of the packages that only reports need."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from ..process.command_line import Parser

SLURM_FLAGS: dict[str, tuple[str, type, str, str]] = {
    "--partition": ("partition", str, "NAME", "partition of the jobs (default: the cluster's)"),
    "--time": ("time", int, "MINUTES", "limit of a job, which is then requeued (default: 240)"),
    "--gpus": ("gpus_per_node", int, "N", "GPUs per job"),
    "--cpus": ("cpus_per_task", int, "N", "CPU cores per job"),
    "--memory": ("mem", str, "SIZE", "memory per job, for example 16G"),
}
"""Flags, and for each flag submitit's parameter, the type, the metavar and the help."""


INTERRUPTED = "interrupted; the same command goes on with the unfinished runs"
"""The message after ctrl-C or SIGTERM."""
PRESET = "a file of configs/presets/{}; flags override its values"


def add_shared(parser: Parser) -> None:
    """Add the flags of all experiments, and KEY VALUE pairs after them."""
    parser.takes_pairs = True
    parser.set_defaults(interrupted=INTERRUPTED)
    add = parser.add_argument
    add("--protocol", metavar="NAME", help="a protocol (default: base2new)")
    add("--datasets", nargs="+", metavar="NAME", help="files of configs/datasets to train on")
    add("--shots", nargs="+", type=int, metavar="N", help="training images per class; -1: all")
    add("--seeds", nargs="+", type=int, metavar="N", help="random seeds, one training for each")
    add("--root", type=Path, help="data folder (default: data)")
    add("--output-dir", type=Path, help="folder of the runs and the report (default: in output/)")
    add("--executor", choices=("local", "slurm"), default="local", help="where runs are executed")
    add("--jobs", type=int, metavar="N", help="jobs at a time (default: one per GPU or CPU core)")
    add("--dry-run", action="store_true", help="only print the number of runs and their time")
    add("--markdown", type=Path, metavar="FILE", help="also write the tables to this file")
    _add_slurm(parser)
    parser.add_argument(
        "opts",
        nargs="*",
        metavar="KEY VALUE",
        help="config keys and values for all runs, after all flags: OPTIM.MAX_EPOCH 10",
    )


def _add_repository(parser: Parser) -> None:
    """Add the flags that name a repository other than this one."""
    group = parser.add_argument_group("trainers of your own repository, which stays unchanged")
    group.add_argument(
        "--repository",
        type=Path,
        metavar="DIR",
        help="the folder of your train.py; --config is then a yaml file",
    )
    group.add_argument(
        "--dataset-config", nargs="+", metavar="FILE", help="yaml files of data sets to train on"
    )


def add_compare(parser: Parser) -> None:
    """Add the flags of ``compare``."""
    add_shared(parser)
    add = parser.add_argument
    add("--preset", metavar="NAME", help=PRESET.format("compare"))
    _add_repository(parser)
    add("--hosts", "--host", nargs="+", metavar="NAME", help="trainers that @anchoropt wraps")
    add("--config", metavar="NAME", help="a file of configs/trainers/<host>, for all hosts")
    add(
        "--anchoropt",
        choices=("both", "with", "without"),
        default="both",
        help="hosts with AnchorOPT, without AnchorOPT, or both (default)",
    )
    add(
        "--method",
        choices=("released", "defaults", "both"),
        help="AnchorOPT as in the released code, with the defaults of this repository, or both as "
        "rows of their own (default: released with published settings, otherwise defaults)",
    )
    add(
        "--descriptions",
        type=Path,
        metavar="FOLDER",
        help="the released folder of descriptions (templates): stage 1 learns from the data set's "
        "file; for one file for all data sets, give the key TRAINER.ANCHOROPT.DESCRIPTIONS",
    )
    add(
        "--templates",
        action="store_true",
        help="learn the anchors of published settings from templates, without descriptions",
    )


def add_ablate(parser: Parser) -> None:
    """Add the flags of ``ablate``."""
    add_shared(parser)
    add = parser.add_argument
    add("--preset", metavar="NAME", help=PRESET.format("ablate"))
    _add_repository(parser)
    add("--host", metavar="NAME", help="a trainer that @anchoropt wraps")
    add("--config", metavar="NAME", help="a file of configs/trainers/<host>")
    add(
        "--grid",
        dest="words",
        action="append",
        default=[],
        metavar="KEY=v1,v2",
        help="values of a factor, such as position, or of a config key; may be repeated",
    )
    add("--grid-file", metavar="FILE", help="a yaml file of lines `KEY: [v1, v2]`, as in --grid")
    add(
        "--one-at-a-time",
        action="store_true",
        default=None,
        help="vary each factor alone, not all combinations",
    )


def _add_slurm(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``--executor slurm``."""
    group = parser.add_argument_group("with --executor slurm (--jobs limits the tasks of an array)")
    for flag, (parameter, kind, metavar, says) in SLURM_FLAGS.items():
        group.add_argument(flag, dest=f"slurm_{parameter}", type=kind, metavar=metavar, help=says)
    group.add_argument(
        "--sbatch",
        dest="slurm_further",
        action="append",
        metavar="KEY=VALUE",
        help="another option of sbatch, for example account=me; may be repeated",
    )


def build_parser(
    prog: str, description: str | None, add: Callable[[Parser], None] = add_shared
) -> Parser:
    """Return a parser with the flags that ``add`` adds: by default, those of all experiments."""
    parser = Parser(
        prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add(parser)
    return parser

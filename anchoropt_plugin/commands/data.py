"""Say which of the public data sets are in a folder, what is missing, and where to get it.

    python -m anchoropt_plugin data --root DATA
    python -m anchoropt_plugin data --root DATA --sample 200

Every picture of a split has to be there; some are opened, and broken ones named.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from types import ModuleType

from ..errors import UserError

NAME = "data"
HELP = "say what is there of the public data sets, and where to get the rest"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.add_argument("--root", required=True, help="folder of the data sets")
    parser.add_argument(
        "--sample", type=int, default=20, help="open so many pictures of each (default: 20)"
    )


def run(args: argparse.Namespace) -> int:
    """Look, and print what was found.

    Raises:
        UserError: ``--root`` or ``--sample`` cannot be, or there is no checkout here.
    """
    if args.sample < 0:
        raise UserError(f"--sample is {args.sample}: give 0 to open no picture, or more")
    module = _inventory()
    module.show(module.inventory(args.root, args.sample, progress=sys.stderr.isatty()))
    return 0


def _inventory() -> ModuleType:
    # The table of data sets is no part of the installed package, but of the checkout.
    here = Path.cwd()
    if not (here / "datasets" / "inventory.py").is_file():
        raise UserError(
            f"{here} is not a checkout of anchoropt-plugin, whose datasets/ knows the public data "
            "sets: change into one, and give the same command"
        )
    if str(here) not in sys.path:
        sys.path.insert(0, str(here))
    return importlib.import_module("datasets.inventory")

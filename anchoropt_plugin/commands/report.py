"""Write a page about the last test of a run: accuracy, mistakes, calibration, training.

    python -m anchoropt_plugin report output/base

The page is report.html in that folder: one file, which fetches nothing. Its numbers are computed
from predictions.csv, which every test writes; a csv file of your own needs the columns image,
truth, prediction and probability.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

from ..errors import UserError

HELP = "write a page about the last test of a run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    parser.add_argument("folder", metavar="DIR", type=Path, help="output folder of the run")


def run(args: argparse.Namespace) -> int:
    """Write ``report.html`` into the output folder and print its path.

    Raises:
        UserError: a missing matplotlib, or a folder without a readable ``predictions.csv``.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("report needs matplotlib: pip install 'anchoropt-plugin[report]'")
    from ..report.page import write_page

    runs = sorted(path.parent for path in args.folder.glob("*/**/predictions.csv"))
    if runs and not (args.folder / "predictions.csv").is_file():
        listed = ", ".join(map(str, runs[:5])) + (", …" if len(runs) > 5 else "")
        raise UserError(f"{args.folder} holds {len(runs)} runs: give the folder of one: {listed}")
    print(write_page(args.folder))
    return 0

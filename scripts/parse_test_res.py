r"""Print mean and deviation of the accuracies in the log.txt files of several seeds.

    python scripts/parse_test_res.py output/my_run                  # folders seed1, seed2, …
    python scripts/parse_test_res.py output/my_run --test-log       # logs of --eval-only runs
    python scripts/parse_test_res.py output/my_runs --multi-exp     # several such folders

Flags and output lines are those of CoOp's script of the same name.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from anchoropt_plugin import UserError
from anchoropt_plugin.dassl_compat.utils.tools import listdir_nohidden
from anchoropt_plugin.files.readers import read_text
from anchoropt_plugin.process.command_line import Parser, status_of

AFTER_TRAINING, AFTER_TEST = "Finish training", "=> result"


def value_in(log: str, keyword: str, signal: str) -> float | None:
    """Return the last ``* keyword: number%`` below the line ``signal``, or None.

    >>> value_in("=> result\\n* accuracy: 91.8%", "accuracy", AFTER_TEST)
    91.8
    """
    _, *below = re.split(rf"^\s*{re.escape(signal)}\s*$", log, maxsplit=1, flags=re.MULTILINE)
    numbers = re.findall(rf"\* {re.escape(keyword)}: ([\d.eE+-]+)%", "".join(below))
    return float(numbers[-1]) if numbers else None


def spread(values: Sequence[float], ci95: bool) -> float:
    """Return the deviation of values (over n, not n − 1), or half the width of a 95 % interval.

    >>> spread([1.0, 3.0], ci95=False)
    1.0
    """
    deviation = statistics.pstdev(values)
    return 1.96 * deviation / len(values) ** 0.5 if ci95 else deviation


def summarise(folder: Path, args: argparse.Namespace, signal: str) -> float:
    """Print the value of each seed, the mean and the deviation; return the mean.

    Raises:
        UserError: there is no folder, a folder has no log, or no log has a value.
    """
    print(f"Parsing files in {folder}")
    values = []
    for name in _subfolders(folder):
        log = folder / name / "log.txt"
        value = value_in(read_text(log), args.keyword, signal)
        if value is not None:
            print(f"file: {log}. {args.keyword}: {value:.2f}%. ")
            values.append(value)
    if not values:
        raise UserError(
            f"no '* {args.keyword}: …%' below a line {signal!r} in {folder}/*/log.txt; "
            "give --test-log for logs of --eval-only, --multi-exp for a folder of such folders"
        )
    mean = statistics.fmean(values)
    print("===")
    print(f"Summary of directory: {folder}")
    print(f"* {args.keyword}: {mean:.2f}% +- {spread(values, args.ci95):.2f}%")
    print("===")
    return mean


def _subfolders(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    return listdir_nohidden(folder, sort=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("directory", type=Path, help="folder with a folder for each seed, each with a log.txt")
    add("--ci95", action="store_true", help="half the width of a 95 %% interval, not the deviation")
    add("--test-log", action="store_true", help="logs of --eval-only runs")
    add(
        "--multi-exp",
        action="store_true",
        help="a folder of several such folders: also print the mean over them",
    )
    add("--keyword", default="accuracy", help="name of the number in the log (default: accuracy)")
    args = parser.parse_args(argv)
    signal = AFTER_TEST if args.test_log else AFTER_TRAINING
    if not args.multi_exp:
        summarise(args.directory, args, signal)
        return
    means = [summarise(args.directory / n, args, signal) for n in _subfolders(args.directory)]
    if not means:
        raise UserError(f"{args.directory} is empty")
    print("Average performance")
    print(f"* {args.keyword}: {statistics.fmean(means):.2f}%")


if __name__ == "__main__":
    sys.exit(status_of(main))

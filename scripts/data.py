"""List the public data sets in a folder, what is missing, and where to get it.

    python scripts/data.py --root DATA
    python scripts/data.py --root DATA --sample 200

Every image of a split must exist. Some images are opened, and broken ones are listed. Nothing is
downloaded.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from anchoropt_plugin import UserError
from anchoropt_plugin.process.command_line import Parser, status_of
from datasets.inventory import inventory, show


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Raises:
        UserError: an unusable ``--root`` or ``--sample``.
    """
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder of the data sets")
    parser.add_argument(
        "--sample", type=int, default=20, help="images to open of each data set (default: 20)"
    )
    args = parser.parse_args(argv)
    if args.sample < 0:
        raise UserError(f"--sample is {args.sample}: give 0 (no image is opened) or more")
    show(inventory(args.root, args.sample, progress=sys.stderr.isatty()))


if __name__ == "__main__":
    sys.exit(status_of(main))

"""List the public data sets in a folder, what is missing, and where to get it.

    python scripts/data.py --root DATA
    python scripts/data.py --root DATA --sample 200
    python scripts/data.py --root my_images --dataset-config-file configs/datasets/image_folder.yaml

Every image of a split must exist. Some images are opened (of your own data sets all), and broken
ones are listed. Nothing is downloaded. The exit status is 1 if a data set is there but not
complete, and, with --dataset-config-file, if the data set is missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import train
from anchoropt_plugin import UserError
from anchoropt_plugin.datasets.inventory import check_configured, inventory, show
from anchoropt_plugin.process.command_line import Parser, status_of


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Raises:
        UserError: an unusable ``--root``, ``--sample`` or yaml file.
    """
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder of the data sets")
    parser.add_argument(
        "--dataset-config-file", metavar="FILE", help="check this data set alone, public or not"
    )
    parser.add_argument(
        "--sample", type=int, default=20, help="images to open of each data set (default: 20)"
    )
    args = parser.parse_args(argv)
    if args.sample < 0:
        raise UserError(f"--sample is {args.sample}: give 0 (no image is opened) or more")
    if args.dataset_config_file:
        words = ["--root", args.root, "--dataset-config-file", args.dataset_config_file]
        finding = check_configured(
            train.setup_cfg(train.build_parser().parse_args(words)), args.sample
        )
        show([finding])
        return int(finding.state != "complete")
    findings = inventory(args.root, args.sample, progress=sys.stderr.isatty())
    show(findings)
    return int(any(finding.state not in ("complete", "missing") for finding in findings))


if __name__ == "__main__":
    sys.exit(status_of(main))

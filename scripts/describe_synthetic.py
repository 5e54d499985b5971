#!/usr/bin/env python
"""Write the stage-1 descriptions of the two embedded data sets, digits.json and shapes.json."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from anchoropt_plugin.datasets.synthetic import BENCHMARK, DIGITS, describe_digit, describe_shape


def main() -> None:
    """Parse the command line and write the two files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "folder",
        type=Path,
        nargs="?",
        default=ROOT / "configs" / "descriptions",
        help="folder for the two files (default: configs/descriptions)",
    )
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    described = {
        "digits": {name: describe_digit(digit) for digit, name in enumerate(DIGITS)},
        "shapes": {str(triple): describe_shape(triple) for triple in BENCHMARK},
    }
    for name, descriptions in described.items():
        text = json.dumps(descriptions, indent=1) + "\n"
        (folder / f"{name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

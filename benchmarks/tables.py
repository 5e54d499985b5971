"""Write the results in output/bench/*.json as tables into docs/performance.md, between its markers.

    make bench && python benchmarks/tables.py

Results of other machines go in with theirs: name them as further files or folders.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from benchmarks.harness import Row
from benchmarks.printing import COLUMNS, cells, describe

PAGE = REPOSITORY / "docs" / "performance.md"
RESULTS = REPOSITORY / "output" / "bench"
ORDER = (
    "Text branch",
    "Very many classes",
    "Training step",
    "Stage 1",
    "Image tower",
    "Evaluation",
)
"""How the titles of the benchmarks begin."""
MARKED = re.compile(r"(?<=<!-- tables -->\n).*?(?=<!-- end of tables -->)", re.DOTALL)


def markdown(results: Sequence[dict[str, Any]]) -> str:
    """A section for each machine, in it a table for each benchmark."""
    lines = []
    for machine, group in groupby(results, key=lambda result: describe(result["machine"])):
        lines += [f"## {machine}", ""]
        for result in group:
            lines += [f"### {result['title']}", "", _row(("case", "side", *COLUMNS[1:]))]
            lines.append(_row(["---", "---", *["---:"] * len(COLUMNS[1:])]))
            rows = [Row(**row) for row in result["rows"]]
            lines += [_row((row.case, *cells(row))) for row in rows]
            lines.append("")
    return "\n".join(lines)


def _row(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"


def read(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """The results in files and folders, those of a machine together, benchmarks in ``ORDER``."""
    files = [file for path in paths for file in (path.glob("*.json") if path.is_dir() else [path])]
    results = [json.loads(file.read_text(encoding="utf-8")) for file in files]

    def place(result: dict[str, Any]) -> tuple[bool, str, int]:
        machine, begins = result["machine"], result["title"].startswith
        return bool(machine["gpu"]), describe(machine), [*map(begins, ORDER)].index(True)

    return sorted(results, key=place)


def main(arguments: Sequence[str] | None = None, page: Path = PAGE) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="*", type=Path, default=[RESULTS], metavar="FILE or FOLDER")
    paths = parser.parse_args(arguments).paths
    missing = [str(path) for path in paths if not path.exists()]
    if missing and paths != [RESULTS]:
        print(f"there is no {missing[0]}")
        return 2
    results = read(paths)
    if not results:
        print("no results: run make bench first")
        return 1
    text = page.read_text(encoding="utf-8")
    page.write_text(MARKED.sub(lambda _: f"\n{markdown(results)}\n", text), encoding="utf-8")
    print(f"{page}: {len(results)} tables")
    return 0


if __name__ == "__main__":
    sys.exit(main())

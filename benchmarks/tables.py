"""Write the results in output/bench/*.json as tables into docs/performance.md, between its markers.

    make bench && python benchmarks/tables.py

To add results of other machines, name their files or folders too.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from anchoropt_plugin.errors import UserError
from anchoropt_plugin.process.command_line import status_of
from benchmarks.command import parser_of
from benchmarks.harness import Row
from benchmarks.printing import COLUMNS, cells, describe, markdown_table

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
"""The first words of the benchmarks' titles."""
MARKED = re.compile(r"(?<=<!-- tables -->\n).*?(?=<!-- end of tables -->)", re.DOTALL)


def markdown(results: Sequence[dict[str, Any]]) -> str:
    """Return a section for each machine, with a table for each benchmark."""
    lines = []
    for machine, group in groupby(results, key=lambda result: describe(result["machine"])):
        lines += [f"## {machine}", ""]
        for result in group:
            rows = [Row(**row) for row in result["rows"]]
            heads = ["case", "side", *list(COLUMNS)[1:]]
            table = markdown_table(heads, [[row.case, *cells(row)] for row in rows], n_texts=2)
            lines += [f"### {result['title']}", "", table, ""]
    return "\n".join(lines)


def read(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the results in files and folders, sorted by machine, then in ``ORDER``.

    Raises:
        UserError: a path does not exist.
    """
    for path in paths:
        if not path.exists():
            raise UserError(f"there is no {path}: run make bench first")
    files = [file for path in paths for file in (path.glob("*.json") if path.is_dir() else [path])]
    results = [json.loads(file.read_text(encoding="utf-8")) for file in files]

    def place(result: dict[str, Any]) -> tuple[bool, str, int]:
        machine, begins = result["machine"], result["title"].startswith
        return bool(machine["gpu"]), describe(machine), [*map(begins, ORDER)].index(True)

    return sorted(results, key=place)


def write(paths: Sequence[Path], page: Path) -> int:
    """Write the tables of the results in ``paths`` into ``page``; return the exit status."""
    results = read(paths)
    if not results:
        print("no results: run make bench first")
        return 1
    text = page.read_text(encoding="utf-8")
    page.write_text(MARKED.sub(lambda _: f"\n{markdown(results)}\n", text), encoding="utf-8")
    print(f"{page}: {len(results)} tables")
    return 0


def main(arguments: Sequence[str] | None = None, page: Path = PAGE) -> int:
    """Run the command line and return the exit status."""
    parser = parser_of(__doc__)
    parser.add_argument("paths", nargs="*", type=Path, default=[RESULTS], metavar="FILE or FOLDER")
    return status_of(lambda: write(parser.parse_args(arguments).paths, page))


if __name__ == "__main__":
    sys.exit(main())

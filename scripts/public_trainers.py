"""Try the trainers of public repositories with AnchorOPT, and write a table.

    python scripts/public_trainers.py checkouts/*/* --markdown docs/results/public_trainers.md

Each argument is the folder of a git checkout, named owner/name at its end. For every trainer that
a checkout registers, `python -m anchoropt_plugin check` runs in the folder of its train.py, with
the keys that configs/public_trainers.yaml gives for its repository. It compares a step with the
definition of AnchorOPT, computed apart in float64. Nothing in a checkout changes.
"""

from __future__ import annotations

import argparse
import ast
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from anchoropt_plugin.files.atomic import write_text
from anchoropt_plugin.files.readers import read_text

ROOT = Path(__file__).resolve().parents[1]
WORDS = ROOT / "configs" / "public_trainers.yaml"
PAGE = """# Public trainers

The trainers of fetched checkouts of public repositories, unmodified, with AnchorOPT: each is right
by the probe of `check`, or refused with the line that `check` prints.
[Hooks](../hooks.md#public-trainers-that-were-tried) says what the probe compares.

```
python scripts/public_trainers.py checkouts/*/* --markdown docs/results/public_trainers.md
```

"""
RIGHT, PACKAGE = "right by the probe of `check`", "anchoropt_plugin"


class Row(NamedTuple):
    """A trainer of a checkout, and what came of it."""

    repository: str
    commit: str
    trainer: str
    result: str


def trainers_in(checkout: Path) -> Iterator[tuple[Path, str]]:
    """Yield the folder of a train.py, and ``module:Trainer``, for each trainer registered there."""
    for folder in sorted(path.parent for path in checkout.rglob("train.py")):
        for path in sorted(folder.glob("*/**/*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            # A copy of Dassl has trainers of its own, without prompts.
            is_left_out = any(part.startswith(".") or part == "dassl" for part in parts)
            if not is_left_out and not _has_train_py(path.parent, folder):
                module = ".".join(part for part in parts if part != "__init__")
                yield from ((folder, f"{module}:{name}") for name in _registered(path))


def _has_train_py(folder: Path, top: Path) -> bool:
    """Whether a folder below ``top``, or one between them, has a train.py of its own."""
    return folder != top and ((folder / "train.py").is_file() or _has_train_py(folder.parent, top))


def _registered(path: Path) -> list[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:
        return []
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    registers = "TRAINER_REGISTRY.register"
    return [c.name for c in classes if any(registers in ast.unparse(d) for d in c.decorator_list)]


def tried(checkout: Path, words: dict[str, Any], only: Sequence[str], limit: float) -> list[Row]:
    """Return a row for each trainer of a checkout."""
    repository = "/".join(checkout.resolve().parts[-2:])
    command = ["git", "-C", str(checkout), "rev-parse", "--short=7", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    own = words.get(repository, {})
    return [
        Row(repository, commit, spec.partition(":")[2], _check(folder, spec, own, limit))
        for folder, spec in trainers_in(checkout)
        if not only or spec.partition(":")[2] in only
    ]


def _check(folder: Path, spec: str, words: dict[str, list[Any]], limit: float) -> str:
    """Return ``RIGHT``, or why ``check`` refuses the trainer."""
    name = spec.partition(":")[2]
    more = [str(word) for word in words.get(name, words.get("all", []))]
    with tempfile.TemporaryDirectory() as path:
        # The package alone: this repository has folders named trainers and datasets, too.
        Path(path, PACKAGE).symlink_to(ROOT / PACKAGE)
        try:
            done = subprocess.run(
                [sys.executable, "-W", "ignore", "-m", PACKAGE, "check", spec, *more],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": path},
                capture_output=True,
                text=True,
                timeout=limit,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"not finished after {limit:.0f} s"
    if done.returncode == 0:
        return RIGHT
    lines = done.stderr.strip().splitlines() or ["no message"]
    return lines[-1].removeprefix("error: ").replace(f"{folder.resolve()}/", "")


def as_table(rows: Sequence[Row]) -> str:
    """Return the rows in Markdown; trainers of a repository with equal results share a row.

    >>> print(as_table([Row("a/b", "123", "X", RIGHT), Row("a/b", "123", "Y", RIGHT)]))
    | repository | commit | trainers | result |
    | --- | --- | --- | --- |
    | a/b | 123 | X, Y | right by the probe of `check` |
    <BLANKLINE>
    """
    groups: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        groups.setdefault((row.repository, row.commit, row.result), []).append(row.trainer)
    lines = ["| repository | commit | trainers | result |", "| --- | --- | --- | --- |"]
    for (repository, commit, result), names in groups.items():
        cells = repository, commit, ", ".join(names), result.replace("|", "\\|")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run this command; return its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkouts", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--only", nargs="+", default=[], metavar="TRAINER", help="these trainers")
    parser.add_argument("--limit", type=float, default=600, help="seconds for one trainer")
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="also write a page with the table there"
    )
    args = parser.parse_args(arguments)
    words = yaml.safe_load(read_text(WORDS)) or {}
    rows: list[Row] = []
    for checkout in args.checkouts:
        found = tried(checkout, words, args.only, args.limit)
        for row in found:
            print(" | ".join(row), flush=True)
        rows += found
    if args.markdown:
        write_text(args.markdown, PAGE + as_table(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

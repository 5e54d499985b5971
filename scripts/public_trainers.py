"""Try the trainers of public repositories with AnchorOPT, and write a table.

    python scripts/public_trainers.py checkouts/*/* --markdown docs/results/public_trainers.md

Each argument is the folder of a git checkout, named owner/name at its end. For every trainer that
a checkout registers, `python -m anchoropt_plugin check` runs in the folder of its train.py, with
the keys that configs/public_trainers.yaml gives for its repository. It compares a step with the
definition of AnchorOPT, computed apart in float64. A trainer whose file equals one of an earlier
checkout byte for byte is not tried again. Nothing in a checkout changes.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
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
by the probe of `check`, or refused with the line that `check` prints, here without the advice
behind its semicolon.
[Hooks](../hooks.md#public-trainers-that-were-tried) says what the probe compares.

```
python scripts/public_trainers.py checkouts/*/* --markdown docs/results/public_trainers.md
```

Of {repositories} repositories {tried} trainers were tried: {right} are right, {refused} are
refused ({alone} of these fail without AnchorOPT, too, on the random CLIP and images of `check`, or
cannot be imported), and {without} have no prompt learner. {copies} more are copies.

{table}
## Without a prompt learner

AnchorOPT needs a module with the tensors `token_prefix`, `token_suffix` and `tokenized_prompts`,
like CoOp's prompt learner, or a `PromptHook`. These trainers have none.

{table_without}
## Copies

The file of these trainers is equal, byte for byte, to one of another repository, which was tried.

{table_copies}"""
RIGHT, PACKAGE = "right by the probe of `check`", "anchoropt_plugin"
COPY, NO_LEARNER = "the same file as in", " has no prompt learner: "
ALONE = re.compile(r"\w+ without AnchorOPT fails |importing \S+ fails: ")


class Trainer(NamedTuple):
    """A registered trainer: its file, the folder where `check` runs, and ``module:Trainer``."""

    file: Path
    folder: Path
    spec: str

    @property
    def name(self) -> str:
        """Return the name of its class."""
        return self.spec.partition(":")[2]


class Row(NamedTuple):
    """A trainer of a checkout, and what came of it."""

    repository: str
    commit: str
    trainer: str
    result: str


class Results:
    """The results of finished trials, in a file: an interrupted run resumes with it.

    Args:
        path: a file with one trial and its result a line; None: no file.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        lines = read_text(path).splitlines() if path and path.exists() else []
        self._known = {tuple(trial): result for trial, result in map(json.loads, lines)}

    def get(self, trial: tuple[str, ...], find: Callable[[], str]) -> str:
        """Return the result of ``trial``: the one in the file, or what ``find`` returns."""
        if trial not in self._known:
            self._known[trial] = find()
            if self._path:
                with self._path.open("a") as file:
                    print(json.dumps([trial, self._known[trial]]), file=file)
        return self._known[trial]


def trainers_in(checkout: Path) -> Iterator[Trainer]:
    """Yield each trainer registered in a checkout.

    `check` runs in the nearest folder above it that has a train.py, otherwise in the checkout.
    """
    for path in sorted(checkout.glob("*/**/*.py")):
        above = [folder for folder in path.parents if folder.is_relative_to(checkout)]
        folder = next((folder for folder in above if (folder / "train.py").is_file()), checkout)
        parts = path.relative_to(folder).with_suffix("").parts
        # A copy of Dassl has trainers of its own, without prompts. Python imports no other names.
        if all(part.isidentifier() and part != "dassl" for part in parts):
            module = ".".join(part for part in parts if part != "__init__")
            yield from (Trainer(path, folder, f"{module}:{name}") for name in _registered(path))


def _registered(path: Path) -> list[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:
        return []
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    registers = "TRAINER_REGISTRY.register"
    return [c.name for c in classes if any(registers in ast.unparse(d) for d in c.decorator_list)]


def tried(
    checkout: Path,
    words: dict[str, Any],
    only: Sequence[str],
    limit: float,
    results: Results,
    seen: dict[bytes, str],
) -> Iterator[Row]:
    """Yield a row for each trainer of a checkout.

    Args:
        checkout: the folder of a git checkout.
        words: KEY VALUE pairs by repository and trainer.
        only: names of trainers; none: all of them.
        limit: seconds for one trainer.
        results: of finished trials.
        seen: repositories by the content of a trainer's file; those of this checkout are added.
    """
    repository = "/".join(checkout.resolve().parts[-2:])
    command = ["git", "-C", str(checkout), "rev-parse", "--short=7", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    own = words.get(repository, {})
    for trainer in trainers_in(checkout):
        name = trainer.name
        if only and name not in only:
            continue
        first = seen.setdefault(trainer.file.read_bytes(), repository)
        if first != repository:
            yield Row(repository, commit, name, f"{COPY} {first}")
            continue
        more = [str(word) for word in own.get(name, own.get("all", []))]
        place = str(trainer.file.relative_to(checkout))
        trial = repository, commit, place, name, *more
        result = results.get(trial, partial(_check, trainer, more, limit))
        yield Row(repository, commit, name, result)


def _check(trainer: Trainer, more: Sequence[str], limit: float) -> str:
    """Return ``RIGHT``, or why ``check`` refuses the trainer; ``more`` are KEY VALUE pairs."""
    with tempfile.TemporaryDirectory() as path:
        # The package alone: this repository has folders named trainers and datasets, too.
        Path(path, PACKAGE).symlink_to(ROOT / PACKAGE)
        try:
            done = subprocess.run(
                [sys.executable, "-W", "ignore", "-m", PACKAGE, "check", trainer.spec, *more],
                cwd=trainer.folder,
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
    line = lines[-1].removeprefix("error: ").replace(f"{path}/", "")
    return line.replace(f"{trainer.folder.resolve()}/", "")


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
        advice_cut = result.partition("; ")[0].replace("|", "\\|")
        lines.append(f"| {repository} | {commit} | {', '.join(names)} | {advice_cut} |")
    return "\n".join([*lines, ""])


def as_page(rows: Sequence[Row]) -> str:
    """Return the page: how many trainers, the table, those without a prompt learner, and copies."""
    copies = [row for row in rows if row.result.startswith(COPY)]
    without = [row._replace(result="refused") for row in rows if NO_LEARNER in row.result]
    table = [
        row for row in rows if not row.result.startswith(COPY) and NO_LEARNER not in row.result
    ]
    right = sum(row.result == RIGHT for row in table)
    return PAGE.format(
        repositories=len({row.repository for row in rows}),
        tried=len(table) + len(without),
        right=right,
        refused=len(table) - right,
        alone=sum(ALONE.match(row.result) is not None for row in table),
        without=len(without),
        copies=len(copies),
        table=as_table(table),
        table_without=as_table(without),
        table_copies=as_table(copies),
    )


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
    parser.add_argument(
        "--rows",
        type=Path,
        metavar="FILE",
        help="keep results there; those in it are not tried again",
    )
    args = parser.parse_args(arguments)
    words = yaml.safe_load(read_text(WORDS)) or {}
    results, seen, rows = Results(args.rows), dict[bytes, str](), list[Row]()
    for checkout in dict.fromkeys(args.checkouts):
        for row in tried(checkout, words, args.only, args.limit, results, seen):
            print(" | ".join(row), flush=True)
            rows.append(row)
    if args.markdown:
        write_text(args.markdown, as_page(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

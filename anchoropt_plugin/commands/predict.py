"""Print the classes of pictures, with probabilities, by what a run has trained.

    python -m anchoropt_plugin predict --model-dir output/base cat.jpg
    python -m anchoropt_plugin predict --model-dir output/base pictures/ --top 1 \\
        --classes "red fox" badger

The trainer has to be known here: the module `trainers` of the working directory is imported, or
those given with --import.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from PIL import Image
from torch import Tensor

from ..errors import UserError
from ..files.readers import read_image, read_text
from ..process.user_code import import_user_module
from ..training.predictor import Predictor, load_predictor

HELP = "print the classes of pictures by what a run has trained"
USUAL_MODULE = "trainers"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    add = parser.add_argument
    add("pictures", nargs="+", metavar="PICTURE", help="picture, or folder of pictures")
    add("--model-dir", required=True, help="output folder of the run")
    names = parser.add_mutually_exclusive_group()
    names.add_argument("--classes", nargs="+", metavar="NAME", help="replace those of the run")
    names.add_argument("--classes-file", metavar="FILE", help="the same, one in each line")
    add("--load-epoch", type=int, help="of which epoch (default: the one that the run tests)")
    add("--top", type=int, default=5, help="print so many classes of a picture (default: 5)")
    add("--json", action="store_true", help="print json: a list with an entry for each picture")
    add(
        "--import",
        action="append",
        dest="modules",
        metavar="MODULE",
        help=f"registers the trainer; may be repeated (default: {USUAL_MODULE}, if there)",
    )


def run(args: argparse.Namespace) -> int:
    """Print the classes of all pictures.

    Raises:
        UserError: a picture that was named cannot be read, or none in a folder; no such run.
    """
    if args.top < 1:
        raise UserError(f"--top is {args.top}: 1 at least")
    for path in map(Path, args.pictures):
        if not path.exists():
            raise UserError(f"there is no picture {path}")
    with contextlib.redirect_stdout(sys.stderr):  # hosts print while they build their model
        _import_trainers(args.modules)
        predictor = load_predictor(args.model_dir, _class_names(args), args.load_epoch)
    entries = []
    for path, probabilities in _predicted(predictor, args.pictures):
        found = dict(islice(predictor.by_name(probabilities).items(), args.top))
        if args.json:
            entries.append({"picture": str(path), "probabilities": found})
        else:
            print(path)
            print("\n".join(f"  {100 * p:5.1f} %  {name}" for name, p in found.items()))
    if args.json:
        print(json.dumps(entries, indent=1, ensure_ascii=False))
    return 0


def _import_trainers(modules: list[str] | None) -> None:
    if modules is None:
        modules = [USUAL_MODULE] if importlib.util.find_spec(USUAL_MODULE) else []
    for name in modules:
        import_user_module(name)


def _class_names(args: argparse.Namespace) -> list[str] | None:
    if args.classes_file is None:
        names: list[str] | None = args.classes
        return names
    lines = read_text(args.classes_file).splitlines()
    return [line.strip() for line in lines if line.strip()]


def _predicted(predictor: Predictor, named: list[str]) -> Iterator[tuple[Path, Tensor]]:
    """Each picture with its probabilities (C); what is no picture in a folder is skipped."""
    skipped = 0
    for path in map(Path, named):
        inside = sorted(_files(path)) if path.is_dir() else [path]
        before = skipped
        for start in range(0, len(inside), predictor.batch_size):
            pictures: dict[Path, Image.Image] = {}
            for file in inside[start : start + predictor.batch_size]:
                try:
                    pictures[file] = read_image(file)
                except UserError as error:
                    if not path.is_dir():
                        raise
                    print(f"skipped: {error}", file=sys.stderr)
                    skipped += 1
            rows = predictor.probabilities(list(pictures.values()))
            yield from zip(pictures, rows, strict=True)
        if skipped - before == len(inside):
            raise UserError(f"there is no picture in the folder {path}")
    if skipped:
        print(f"skipped {skipped} file(s) that cannot be read as pictures", file=sys.stderr)


def _files(folder: Path) -> Iterator[Path]:
    """All files in a folder and those in it, but hidden ones."""
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden:
            yield path

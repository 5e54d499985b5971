"""Classify images with the model of a run, and print the probabilities.

    python -m anchoropt_plugin predict --model-dir output/base cat.jpg
    python -m anchoropt_plugin predict --model-dir output/base images/ --top 1 \\
        --classes "red fox" badger
    python -m anchoropt_plugin predict --model-dir output/base output/base/predictions.csv
    python -m anchoropt_plugin predict --model-dir weights.safetensors images/

The trainer of a run must be registered. The command imports the module `trainers` of the working
directory, or the modules given with --import. Exported class weights need no trainer.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import logging
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from PIL import Image
from torch import Tensor

from ..errors import UserError
from ..files.images import DamagedImages, files_in, has_frames, read_image
from ..files.predictions import read_images
from ..files.readers import read_names
from ..process.user_code import import_user_module
from ..training.load_predictor import load_predictor
from ..training.predictor import Predictor

log = logging.getLogger("anchoropt_plugin")

HELP = "classify images with the model of a run"
USUAL_MODULE = "trainers"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    add = parser.add_argument
    add("images", nargs="*", metavar="IMAGE", help="image, folder, or .csv with a column 'image'")
    add_model_arguments(parser)
    add(
        "--top",
        type=int,
        default=5,
        help="number of classes per image, in the json too (default: 5)",
    )
    add("--json", action="store_true", help="print json: a list with one entry per image")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``loaded_predictor``."""
    add = parser.add_argument
    add("--model-dir", required=True, help="output folder of the run, or exported class weights")
    names = parser.add_mutually_exclusive_group()
    names.add_argument(
        "--classes",
        nargs="+",
        metavar="NAME",
        help="replace the run's class names; takes all words after it, so give it last",
    )
    names.add_argument("--classes-file", metavar="FILE", help="file of class names, one per line")
    add("--load-epoch", type=int, help="epoch of the checkpoint (default: the one the run tests)")
    add("--backbone", help="the file or folder of the CLIP, if it is elsewhere now")
    add(
        "--import",
        action="append",
        dest="modules",
        metavar="MODULE",
        help="module that registers the trainer; may be repeated "
        f"(default: {USUAL_MODULE}, if it exists)",
    )


def run(args: argparse.Namespace) -> int:
    """Print the classes of all images.

    Raises:
        UserError: unreadable images, a folder without readable images, or a missing run.
    """
    if args.top < 1:
        raise UserError(f"--top is {args.top}, but must be 1 or more")
    if not args.images:
        taken = ", before --classes, which takes all words after it" if args.classes else ""
        raise UserError(f"no image is given: name images or folders of images{taken}")
    for path in map(Path, args.images):
        if not path.exists():
            raise UserError(f"there is no image or folder {path}")
    predictor = loaded_predictor(args)
    entries = []
    for path, probabilities in _predicted(predictor, args.images):
        found = dict(islice(predictor.by_name(probabilities).items(), args.top))
        if args.json:
            entries.append({"image": str(path), "probabilities": found})
        else:
            print(path)
            print("\n".join(f"  {100 * p:5.1f} %  {name}" for name, p in found.items()))
    if args.json:
        print(json.dumps(entries, indent=1, ensure_ascii=False))
    return 0


def loaded_predictor(args: argparse.Namespace, device: str | None = None) -> Predictor:
    """Return the predictor that the arguments of ``add_model_arguments`` name.

    Raises:
        UserError: see ``load_predictor``.
    """
    with contextlib.redirect_stdout(sys.stderr):  # hosts print while they build the model
        if Path(args.model_dir).expanduser().is_dir():
            _import_trainers(args.modules)
        return load_predictor(
            args.model_dir,
            _class_names(args),
            args.load_epoch,
            backbone=args.backbone,
            device=device,
        )


def _import_trainers(modules: list[str] | None) -> None:
    if modules is None:
        modules = [USUAL_MODULE] if importlib.util.find_spec(USUAL_MODULE) else []
    for name in modules:
        import_user_module(name)


def _class_names(args: argparse.Namespace) -> list[str] | None:
    names: list[str] | None = args.classes
    if any("," in name for name in names or ()):
        log.warning(
            "a comma in --classes is part of a class name: put blanks between names, quotes "
            'around a name of several words (--classes "red fox" badger)'
        )
    return names if args.classes_file is None else read_names(args.classes_file)


def _predicted(predictor: Predictor, named: list[str]) -> Iterator[tuple[Path, Tensor]]:
    """Yield each image with its probabilities (C,); other files in a folder are skipped.

    Raises:
        UserError: at the end, if an image that is named cannot be read, or no image of a folder.
    """
    files, skipped = _files(named)
    faults: list[str] = []
    without = {folder for _, folder in files if folder}
    of_frames = 0
    for start in range(0, len(files), predictor.batch_size):
        images: list[tuple[Path, Image.Image]] = []  # a csv file may repeat an image
        for file, folder in files[start : start + predictor.batch_size]:
            try:
                images.append((file, read_image(file, upright=True)))
            except UserError as error:
                if folder:
                    skipped += 1
                    _tell(f"skipped: {error}")
                else:
                    faults.append(str(error))
            else:
                without.discard(folder)
                of_frames += has_frames(file)
        rows = predictor.probabilities([image for _, image in images])
        yield from zip((file for file, _ in images), rows, strict=True)
    if skipped:
        _tell(f"skipped {skipped} file(s) that cannot be read as images")
    if of_frames:
        _tell(f"{of_frames} image(s) have several frames or pages: the first was classified")
    if faults:
        raise DamagedImages(len(files), faults)
    if without:
        raise _no_image(min(without))


def _files(named: list[str]) -> tuple[list[tuple[Path, Path | None]], int]:
    """Return the files to classify, each with the folder that names it, if any.

    Returns:
        The files, and the number of files in folders without the name of an image.

    Raises:
        UserError: a folder without images.
    """
    files: list[tuple[Path, Path | None]] = []
    skipped = 0
    for path in map(Path, named):
        if path.is_dir():
            names, others = files_in(path)
            files += [(path / name, path) for name in names]
            for name in others:
                _tell(f"skipped: {path / name} does not have the name of an image")
            skipped += len(others)
            if not names:
                raise _no_image(path)
        elif path.suffix == ".csv":  # such as the predictions.csv of a test
            files += [(Path(image), None) for image in read_images(path)]
        else:
            files.append((path, None))
    return files, skipped


def _no_image(folder: Path) -> UserError:
    return UserError(f"there is no image in the folder {folder}")


def _tell(line: str) -> None:
    print(line, file=sys.stderr)

"""The two data sets that need no download, written as image folders on first use.

Both have the layout of the public few-shot data sets: ``images/<class>/*.png`` beside one split
file ``{"train": [[relative path, label, class name], …], "val": …, "test": …}``.

* digits: the 1,797 real handwritten digits of scikit-learn, 8 x 8 grey pixels.
* shapes: drawings of 48 combinations of colour, fill and shape that the embedded tiny CLIP never
  saw. Unlike its training images they are under yellow light, rotated, blurred, noisy and
  cluttered.

Writing is deterministic and atomic: a folder is complete or absent.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..errors import UserError
from .synthetic import BENCHMARK, DIGITS, benchmark_scenes, camera
from .synthetic.drawing import draw_shapes
from .synthetic.sampling import uniform

DIGITS_SPLIT = "split_zhou_Digits.json"
SHAPES_SPLIT = "split_zhou_Shapes.json"

_SHAPES_PER_CLASS = {"train": 20, "val": 8, "test": 24}

_Example = tuple[str, int, str, np.ndarray]  # part, label, class name, uint8 pixels


def write_digits(folder: Path) -> None:
    """Write the handwritten digits to ``folder``, unless they exist.

    Classes are "zero" to "nine". In scikit-learn's order the first 60 % of each class are for
    training, the next 10 % for validation and the last 30 % for test. scikit-learn orders digits by
    writer, so most writers of the test part are in no other part.

    Args:
        folder: the folder ``<root>/digits`` for ``images/`` and ``split_zhou_Digits.json``.

    Raises:
        UserError: a missing scikit-learn, or a folder that exists with other content.
    """
    _write_once(folder, DIGITS_SPLIT, _digits)


def write_shapes(folder: Path) -> None:
    """Write the drawn shapes to ``folder``, unless they exist.

    Classes are the 48 triples of ``synthetic.BENCHMARK``, in that order. Each class has 20
    images for training, 8 for validation and 24 for test, of 32 x 32 RGB pixels.

    Args:
        folder: the folder ``<root>/shapes`` for ``images/`` and ``split_zhou_Shapes.json``.

    Raises:
        UserError: a folder that exists with other content.
    """
    _write_once(folder, SHAPES_SPLIT, _shapes)


def _digits() -> Iterator[_Example]:
    try:
        from sklearn.datasets import load_digits  # here, as no other data set needs scikit-learn
    except ImportError as error:
        raise UserError(
            "the Digits data set needs scikit-learn: pip install 'anchoropt-plugin[data]'"
        ) from error
    return _digit_examples(load_digits())


def _digit_examples(bunch: Any) -> Iterator[_Example]:
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    for label, name in enumerate(DIGITS):
        rows = np.flatnonzero(bunch.target == label)
        val, test = round(len(rows) * 0.6), round(len(rows) * 0.7)
        for position, row in enumerate(rows):
            part = "train" if position < val else "val" if position < test else "test"
            yield part, label, name, pixels[row]


def _shapes() -> Iterator[_Example]:
    for seed, (part, per_class) in enumerate(_SHAPES_PER_CLASS.items()):
        generator = torch.Generator().manual_seed(12345 + seed)
        scenes, labels = benchmark_scenes(generator, per_class, large=0.5)
        n = len(scenes)
        images = draw_shapes(generator, scenes, clutter=3, rotation=0.8, colour_spread=0.08)
        dim_yellow = torch.tensor([0.8, 0.656, 0.48])
        light = dim_yellow * (1 + torch.randn(n, 3, generator=generator) * 0.05)
        images = camera.blur(images * light[:, :, None, None], uniform(generator, n, 0.336, 1.12))
        images = camera.add_noise(generator, images, torch.full((n,), 0.06))
        pixels = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
        for label, image in zip(labels.tolist(), pixels, strict=True):
            yield part, label, str(BENCHMARK[label]), image


def _write_once(folder: Path, split_file: str, examples: Callable[[], Iterator[_Example]]) -> None:
    if (folder / split_file).is_file():
        return
    try:
        _write_beside(folder, split_file, examples())
    except OSError as error:
        raise UserError(
            f"cannot write the data set to {folder}: {error.strerror}; give a --root that can be "
            "written to"
        ) from error


def _write_beside(folder: Path, split_file: str, examples: Iterator[_Example]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    # A hidden sibling is on the same file system, so the last step is one rename.
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        draft = Path(scratch) / folder.name
        _write(draft, split_file, examples)
        try:
            draft.rename(folder)
        except OSError as error:  # another process, or the user, made the folder meanwhile
            if not (folder / split_file).is_file():
                raise UserError(
                    f"{folder} exists but has no {split_file}: move the folder away, or give "
                    "another --root"
                ) from error


def _write(folder: Path, split_file: str, examples: Iterator[_Example]) -> None:
    split: dict[str, list[tuple[str, int, str]]] = {"train": [], "val": [], "test": []}
    for part, label, name, pixels in examples:
        path = Path(name.replace(" ", "_"), f"{part}_{len(split[part]):04d}.png")
        (folder / "images" / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / "images" / path)
        split[part].append((path.as_posix(), label, name))
    (folder / split_file).write_text(json.dumps(split), encoding="utf-8")

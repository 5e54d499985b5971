"""The two data sets that need no download, written as plain image folders on first use.

Both have the layout of the public few-shot data sets, ``images/<class>/*.png`` beside one split
file ``{"train": [[relative path, label, class name], …], "val": …, "test": …}``, so nothing that
reads them has to know where they came from:

* digits: the 1,797 real handwritten digits that scikit-learn brings along, 8 x 8 grey pixels.
* shapes: drawings of 48 combinations of colour, fill and shape that the embedded tiny CLIP never
  saw, under yellow light, turned, blurred, noisy and cluttered as none of its pictures were.

Writing is deterministic, and atomic: a folder appears complete or not at all.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from anchoropt_plugin.errors import UserError
from datasets.synthetic import BENCHMARK, DIGITS, benchmark_scenes, camera
from datasets.synthetic.drawing import draw_shapes
from datasets.synthetic.sampling import uniform

DIGITS_SPLIT = "split_zhou_Digits.json"
SHAPES_SPLIT = "split_zhou_Shapes.json"

_SHAPES_PER_CLASS = {"train": 20, "val": 8, "test": 24}

_Picture = tuple[str, int, str, np.ndarray]  # split, label, class name, uint8 pixels


def write_digits(folder: Path) -> None:
    """Write the handwritten digits to ``folder``, unless they are there.

    Classes are "zero" to "nine". Of each class the first 60 % in scikit-learn's order are the
    training split, the next 10 % validation, the last 30 % test; as that order goes by writer,
    most test writers are in no other split.

    Args:
        folder: ``<root>/digits``; gets ``images/`` and ``split_zhou_Digits.json``.

    Raises:
        UserError: the folder exists and holds something else.
    """
    _write_once(folder, DIGITS_SPLIT, _digits)


def write_shapes(folder: Path) -> None:
    """Write the drawn shapes to ``folder``, unless they are there.

    Classes are the 48 triples of ``datasets.synthetic.BENCHMARK``, in that order; for each there
    are 20 pictures for training, 8 for validation and 24 for testing, 32 x 32 RGB pixels.

    Args:
        folder: ``<root>/shapes``; gets ``images/`` and ``split_zhou_Shapes.json``.

    Raises:
        UserError: the folder exists and holds something else.
    """
    _write_once(folder, SHAPES_SPLIT, _shapes)


def _digits() -> Iterator[_Picture]:
    from sklearn.datasets import load_digits  # slow to import, and needed once in a lifetime

    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    for label, name in enumerate(DIGITS):
        rows = np.flatnonzero(bunch.target == label)
        val, test = round(len(rows) * 0.6), round(len(rows) * 0.7)
        for position, row in enumerate(rows):
            split = "train" if position < val else "val" if position < test else "test"
            yield split, label, name, pixels[row]


def _shapes() -> Iterator[_Picture]:
    for seed, (split, per_class) in enumerate(_SHAPES_PER_CLASS.items()):
        generator = torch.Generator().manual_seed(12345 + seed)
        scenes, labels = benchmark_scenes(generator, per_class, large=0.5)
        n = len(scenes)
        images = draw_shapes(generator, scenes, clutter=3, rotation=0.8, colour_spread=0.08)
        dim_yellow = torch.tensor([0.8, 0.656, 0.48])
        light = dim_yellow * (1 + torch.randn(n, 3, generator=generator) * 0.05)
        images = camera.blur(images * light[:, :, None, None], uniform(generator, n, 0.336, 1.12))
        images = camera.add_noise(generator, images, torch.full((n,), 0.06))
        pixels = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
        for label, picture in zip(labels.tolist(), pixels, strict=True):
            yield split, label, str(BENCHMARK[label]), picture


def _write_once(folder: Path, split_file: str, pictures: Callable[[], Iterator[_Picture]]) -> None:
    if (folder / split_file).is_file():
        return
    try:
        _write_beside(folder, split_file, pictures)
    except OSError as error:
        raise UserError(
            f"cannot write the data set to {folder}: {error.strerror}; give a --root that can be "
            "written to"
        ) from error


def _write_beside(
    folder: Path, split_file: str, pictures: Callable[[], Iterator[_Picture]]
) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    # A hidden sibling is on the same file system, so the last step is one rename.
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        draft = Path(scratch) / folder.name
        _write(draft, split_file, pictures())
        try:
            draft.rename(folder)
        except OSError as error:  # somebody was there before: another process, or the user
            if not (folder / split_file).is_file():
                raise UserError(
                    f"{folder} exists but has no {split_file}: "
                    "move the folder away, or choose another root"
                ) from error


def _write(folder: Path, split_file: str, pictures: Iterator[_Picture]) -> None:
    split: dict[str, list[tuple[str, int, str]]] = {"train": [], "val": [], "test": []}
    for part, label, name, pixels in pictures:
        path = Path(name.replace(" ", "_"), f"{part}_{len(split[part]):04d}.png")
        (folder / "images" / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / "images" / path)
        split[part].append((path.as_posix(), label, name))
    (folder / split_file).write_text(json.dumps(split), encoding="utf-8")

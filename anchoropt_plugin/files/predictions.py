"""``predictions.csv``: what a test predicted, a line for each image."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from .atomic import atomic_write
from .readers import read_text

PREDICTIONS = "predictions.csv"
"""In an output folder, next to ``results.json``."""
TOP = 5
"""The number of classes of each image, the most likely first."""
IMAGE = "image"
_NEEDED = (IMAGE, "truth", "prediction", "probability")


@dataclass(frozen=True)
class Predictions:
    """The predictions of a test of n images, in its order.

    Attributes:
        images: n paths.
        truth: n class names.
        top: for each image up to five class names, the most likely first: the prediction.
        probability: n probabilities of the predictions.
    """

    images: Sequence[str]
    truth: Sequence[str]
    top: Sequence[Sequence[str]]
    probability: Sequence[float]


def different_names(names: Mapping[int, str]) -> dict[int, str]:
    """Return the class names by label; names that classes share get their label.

    >>> different_names({0: "crane", 1: "kite", 2: "crane"})
    {0: 'crane (label 0)', 1: 'kite', 2: 'crane (label 2)'}
    """
    count = Counter(names.values())
    return {
        label: f"{name} (label {label})" if count[name] > 1 else name
        for label, name in names.items()
    }


def write_predictions(
    folder: str | Path, rows: Iterable[tuple[str, str, Sequence[str], Sequence[object]]]
) -> None:
    """Write ``predictions.csv``, whole or not at all, if the folder exists.

    Args:
        folder: the output folder.
        rows: for each image its path, its class, the most likely classes and their probabilities.
    """
    if not Path(folder).is_dir():
        return
    text, n_top = io.StringIO(), 1
    writer = csv.writer(text, lineterminator="\n")
    for image, truth, top, probabilities in rows:
        pairs = zip(top, probabilities, strict=True)
        writer.writerow([image, truth, *(value for pair in pairs for value in pair)])
        n_top = max(n_top, len(top))
    further = [f"{name}_{i}" for i in range(2, n_top + 1) for name in _NEEDED[2:]]
    header = ",".join([*_NEEDED, *further])
    with atomic_write(Path(folder, PREDICTIONS)) as file:
        # A path may hold bytes that are no UTF-8: the test must not fail because of its name.
        file.write(f"{header}\n{text.getvalue()}".encode(errors="surrogateescape"))


def read_predictions(path: str | Path) -> Predictions:
    """Read a csv file with the columns of ``predictions.csv``; further columns are ignored.

    The columns ``image``, ``truth``, ``prediction`` and ``probability`` are needed;
    ``prediction_2`` to ``prediction_5`` may be missing.

    Raises:
        UserError: a missing or malformed file; the message names the line.
    """
    columns, lines = _table(path, _NEEDED)
    top = ["prediction", *(f"prediction_{i}" for i in range(2, TOP + 1))]
    top = [name for name in top if name in columns]
    unlabelled = next((number for number, line in lines if not line["truth"].strip()), None)
    if unlabelled is not None:
        raise UserError(f"{path}, line {unlabelled} has no truth: leave the line out")
    probability = [
        _probability(line["probability"], f"{path}, line {number}") for number, line in lines
    ]
    return Predictions(
        images=[line[IMAGE] for _, line in lines],
        truth=[line["truth"] for _, line in lines],
        top=[[line[name] for name in top] for _, line in lines],
        probability=probability,
    )


def read_images(path: str | Path) -> list[str]:
    """Return the column ``image`` of a csv file, such as ``predictions.csv``.

    Raises:
        UserError: a missing or malformed file.
    """
    return [line[IMAGE] for _, line in _table(path, [IMAGE])[1]]


def _table(
    path: str | Path, needed: Sequence[str]
) -> tuple[Sequence[str], list[tuple[int, dict[str, str]]]]:
    """Return the columns of a csv file, and its lines by name of the column with their numbers."""
    # With its ends of lines: a quoted path may hold one.
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), restval="")
    try:
        columns = reader.fieldnames or []
        missing = [name for name in needed if name not in columns]
        if missing:
            raise UserError(
                f"{path} has no column {missing[0]!r}: its first line must name the columns "
                f"{', '.join(needed)}"
            )
        lines = [(reader.line_num, line) for line in reader]
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num + 1}: not valid csv: {error}") from error
    if not lines:
        raise UserError(f"{path} has no images")
    return columns, lines


def _probability(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise UserError(f"{where}: the probability is {text!r}, but must be from 0 to 1")
    return value

"""``predictions.csv``: what a test predicted, a line for each image."""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import math
import os
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
_ROUNDING = 1e-3
"""By which a sum of written probabilities may exceed 1."""
_REST = "values without a column"
_RANKS = ("", *(f"_{i}" for i in range(2, TOP + 1)))
"""What follows ``prediction`` and ``probability`` in the names of the columns."""


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
) -> str:
    """Write ``predictions.csv``, whole or not at all, if the folder exists.

    Args:
        folder: the output folder.
        rows: for each image its path, its class, the most likely classes and their probabilities.

    Returns:
        A short hash of the file, without the folder that all its images share.
    """
    if not Path(folder).is_dir():
        return ""
    table, images, n_top = io.StringIO(), [], 1
    writer = csv.writer(table, lineterminator="\n")
    for image, truth, top, probabilities in rows:
        pairs = zip(top, probabilities, strict=True)
        writer.writerow([image, truth, *(value for pair in pairs for value in pair)])
        images.append(image)
        n_top = max(n_top, len(top))
    further = [f"{name}{rank}" for rank in _RANKS[1:n_top] for name in _NEEDED[2:]]
    text = f"{','.join([*_NEEDED, *further])}\n{table.getvalue()}"
    # A path may hold bytes that are no UTF-8: the test must not fail because of its name.
    content = text.encode(errors="surrogateescape")
    with atomic_write(Path(folder, PREDICTIONS)) as file:
        file.write(content)
    return _digest(text, images)


def check_unedited(path: Path, written: str | None) -> None:
    """Check that ``predictions.csv`` has the digest that ``write_predictions`` returned.

    Args:
        path: the file.
        written: the digest; None or empty if an earlier version wrote none.

    Raises:
        UserError: a malformed file, or one with another digest.
    """
    if written and written != _digest(read_text(path), read_images(path)):
        raise UserError(
            f"{path} was changed, or copied from elsewhere, after the test of results.json: remove "
            "both and test again"
        )


def _digest(text: str, images: Sequence[str]) -> str:
    # Runs with the same numbers have the same hash, wherever their images are.
    shared = os.path.commonprefix(images).rpartition("/")[0]  # noqa: RUF071  (texts: "" is one)
    lines = "\n".join(text.replace(shared, "").splitlines())
    return hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()[:16]


def read_predictions(path: str | Path, *, is_own: bool = False) -> Predictions:
    """Read a csv file with the columns of ``predictions.csv``; further columns are ignored.

    The columns ``image``, ``truth``, ``prediction`` and ``probability`` are needed;
    ``prediction_2`` to ``prediction_5`` may be missing.

    Args:
        path: the file.
        is_own: whether a user wrote the file. Each image must then be there once, each class name
            have one spelling, one class be a truth and a prediction, and the probabilities of an
            image add up to 1 at most.

    Raises:
        UserError: a missing or malformed file; the message names the line.
    """
    columns, lines = _table(path, _NEEDED)
    ranks = [*itertools.takewhile(lambda rank: f"prediction{rank}" in columns, _RANKS)]
    top, probability = [], []
    for number, line in lines:
        where = f"{path}, line {number}"
        if not line["truth"].strip():
            raise UserError(f"{where} has no truth: leave the line out")
        probability.append(_first_probability(line, where))
        top.append(_likely([line[f"prediction{rank}"] for rank in ranks], where))
    if is_own:
        _check_own(path, lines, top)
    return Predictions(
        images=[line[IMAGE] for _, line in lines],
        truth=[line["truth"] for _, line in lines],
        top=top,
        probability=probability,
    )


def _first_probability(line: Mapping[str, str], where: str) -> float:
    """Return the probability of the prediction; no further class may have a higher one."""
    texts = (line.get(f"probability{rank}") for rank in _RANKS[1:])
    values = [_probability(line["probability"], where)]
    values += [_probability(text, where) for text in texts if text]
    if values != sorted(values, reverse=True):
        raise UserError(
            f"{where}: a less likely class has a higher probability: sort the classes of the line"
        )
    return values[0]


def _likely(names: Sequence[str], where: str) -> list[str]:
    """Return the likely classes of a line, whose last columns may be empty."""
    count = max((place for place, name in enumerate(names, start=1) if name.strip()), default=1)
    found = [*names[:count]]
    if not all(name.strip() for name in found):
        raise UserError(f"{where}: a prediction is empty: fill it in, or leave the line out")
    if len({*found}) < count:
        twice = next(name for name in found if found.count(name) > 1)
        raise UserError(f"{where}: {twice!r} is predicted twice: give each class once")
    return found


def _check_own(
    path: str | Path, lines: Sequence[tuple[int, Mapping[str, str]]], top: Sequence[Sequence[str]]
) -> None:
    """Check what ``read_predictions`` says of a user's own file."""
    images: dict[str, int] = {}
    names: dict[str, str] = {}
    for (number, line), predicted in zip(lines, top, strict=True):
        image = line[IMAGE] and os.path.normpath(line[IMAGE])
        before = images.setdefault(image, number)
        if image and before != number:
            raise UserError(
                f"{path}, line {number}: the image {image} is in line {before} already: remove a "
                "line"
            )
        for name in (line["truth"], *predicted):
            known = names.setdefault(_spelled(name), name)
            if known != name:
                raise UserError(
                    f"{path}, line {number}: the class {name!r} is {known!r} above: give a class "
                    "the same name everywhere"
                )
        total = sum(float(line.get(f"probability{rank}") or 0) for rank in _RANKS)
        if total > 1 + _ROUNDING:
            raise UserError(
                f"{path}, line {number}: the probabilities add up to {total:.4g}, but must to 1 at "
                "most"
            )
    truth, found = lines[0][1]["truth"], top[0][0]
    if {line["truth"] for _, line in lines}.isdisjoint(itertools.chain.from_iterable(top)):
        raise UserError(
            f"{path}: no prediction is the name of a truth, such as {found!r} and {truth!r}: give "
            "both the same names"
        )


def _spelled(name: str) -> str:
    """Return what the spellings of a class name share.

    >>> _spelled("Red_Fox") == _spelled(" red fox"), _spelled("01") == _spelled("1.0")
    (True, True)
    """
    words = " ".join(name.replace("_", " ").split()).casefold()
    try:
        return str(float(words))
    except ValueError:
        return words


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
    table = io.StringIO(read_text(path), newline="")
    reader = csv.DictReader(table, restkey=_REST, restval="")
    try:
        columns = reader.fieldnames or []
        missing = [name for name in needed if name not in columns]
        if missing:
            raise UserError(
                f"{path} has no column {missing[0]!r}: its first line must name {', '.join(needed)}"
            )
        twice = next((name for name in columns if name and columns.count(name) > 1), None)
        if twice is not None:
            raise UserError(f"{path} has two columns {twice!r}: rename or remove one of them")
        lines = [(reader.line_num, line) for line in reader]
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num + 1}: not valid csv: {error}") from error
    if not lines:
        raise UserError(f"{path} has no images")
    longer = next((number for number, line in lines if any(line.get(_REST, ()))), None)
    if longer is not None:
        raise UserError(
            f"{path}, line {longer} has more values than its first line has columns: put quotation "
            "marks around a text with a comma, and write numbers with a point"
        )
    return columns, lines


def _probability(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise UserError(f"{where}: the probability is {text!r}, but must be from 0 to 1")
    return value

"""Accuracy, confusions, mistakes and calibration: plain functions of predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..files.predictions import Predictions

N_BINS = 15

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


def ranks(predictions: Predictions) -> Counts:
    """Return the place (n,) of each image's class among its likely classes: 0 is a hit, −1 none.

    >>> ranks(Predictions(["x", "y"], ["cat", "fox"], [["dog", "cat"], ["cat", "dog"]], [0.6, 0.9]))
    array([ 1, -1])
    """
    pairs = zip(predictions.truth, predictions.top, strict=True)
    places = [list(top).index(true) if true in top else -1 for true, top in pairs]
    return np.array(places, np.int64)


def top_accuracy(predictions: Predictions, k: int) -> float:
    """Return how often the class is among the k most likely ones, in per cent."""
    places = ranks(predictions)
    return 100 * float(((places >= 0) & (places < k)).mean())


def confusion(predictions: Predictions) -> tuple[list[str], Counts]:
    """Return C class names, and how many images of each (row) got which prediction (column).

    The classes are in the order of their first image; those without an image are last.

    Returns:
        The names, and counts (C, C).
    """
    predicted = [top[0] for top in predictions.top]
    names = list(dict.fromkeys([*predictions.truth, *predicted]))
    place = {name: number for number, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)), np.int64)
    rows, columns = ([place[name] for name in of] for of in (predictions.truth, predicted))
    np.add.at(counts, (rows, columns), 1)
    return names, counts


def confusions(counts: Counts) -> list[tuple[int, int]]:
    """Return all pairs (class, wrong prediction) that occur, the most frequent first."""
    wrong = counts - np.diag(np.diag(counts))
    pairs = zip(*np.nonzero(wrong), strict=True)
    return sorted(((int(i), int(j)) for i, j in pairs), key=lambda pair: -wrong[pair])


def most_confused(counts: Counts, n: int) -> Sequence[int]:
    """Return the n classes with the most mistakes, in their order: their images, or taken for."""
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-(wrong.sum(0) + wrong.sum(1)), kind="stable")
    return sorted(order[:n].tolist())


def mistakes(predictions: Predictions) -> list[int]:
    """Return the places of the wrong predictions, the most probable first."""
    wrong = np.flatnonzero(ranks(predictions) != 0)
    order = np.argsort(-np.asarray(predictions.probability)[wrong], kind="stable")
    return wrong[order].tolist()


@dataclass(frozen=True)
class Calibration:
    """How often predictions of a probability are right; bin b is (b / 15, (b + 1) / 15].

    Attributes:
        count: images of each bin, (15,).
        accuracy: how often their predictions are right, (15,); NaN in an empty bin.
        probability: the mean probability of their predictions, (15,); NaN in an empty bin.
        error: the expected calibration error (ECE), from 0 to 1: the mean over all images of
            \\|accuracy − probability\\| of their bin (Guo et al., 2017, arXiv 1706.04599).
    """

    count: Counts
    accuracy: Floats
    probability: Floats
    error: float


def calibration(predictions: Predictions) -> Calibration:
    """Return the calibration of predictions, in 15 bins of equal width.

    >>> one = Predictions(["a", "b"], ["cat", "cat"], [["cat"], ["dog"]], [0.9, 0.9])
    >>> round(calibration(one).error, 3)
    0.4
    """
    right, sure = ranks(predictions) == 0, np.asarray(predictions.probability, np.float64)
    # Inner edges only, so that a probability of 0 is in the first bin.
    place = np.digitize(sure, np.linspace(0, 1, N_BINS + 1)[1:-1], right=True)
    count = np.bincount(place, minlength=N_BINS)
    with np.errstate(invalid="ignore"):  # an empty bin is 0 / 0
        accuracy, probability = (
            np.bincount(place, weights=values, minlength=N_BINS) / count for values in (right, sure)
        )
    gaps = count * np.nan_to_num(np.abs(accuracy - probability))
    return Calibration(count, accuracy, probability, float(gaps.sum() / len(sure)))

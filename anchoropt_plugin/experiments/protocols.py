"""Protocols: the data sets for training and tests, and the folders of the runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, harmonic_mean
from typing import Any

from ..errors import UserError
from .files import ASSETS, find, made_of, read_as

MEANS: dict[str, Callable[[Sequence[float]], float]] = {
    "arithmetic": fmean,
    "harmonic": harmonic_mean,
}


@dataclass(frozen=True)
class Part:
    """A kind of run of a protocol.

    Attributes:
        score: the column of its accuracy in the tables; may hold ``{dataset}`` and ``{shots}``.
        classes: ``DATASET.SUBSAMPLE_CLASSES``.
        folder: a template of its folder, relative to the output folder.
        datasets: the data sets to test on; empty for the data set of the training.
    """

    score: str
    classes: str
    folder: str
    datasets: Sequence[str] = ()


@dataclass(frozen=True)
class Summary:
    """The last column of a protocol's tables.

    Attributes:
        name: the name of the column.
        mean: the mean of the accuracies, ``harmonic`` or ``arithmetic``.
        over: ``all`` accuracies, or only those of the ``tests``, without the training part.
    """

    name: str
    mean: str
    over: str = "all"

    def __post_init__(self) -> None:
        if self.mean not in MEANS or self.over not in ("all", "tests"):
            raise UserError(
                f"summary {self.name!r}: mean is {' or '.join(MEANS)}, over is all or tests"
            )

    def of(self, scores: Sequence[float]) -> float:
        """Return the mean of accuracies in per cent.

        >>> Summary("HM", "harmonic").of([60.0, 40.0])
        48.0
        """
        return float(MEANS[self.mean](scores))


@dataclass(frozen=True)
class Protocol:
    """A file of ``assets/protocols``.

    Attributes:
        title: the title in reports.
        datasets: the data sets to train on, by the names of their files in ``configs/datasets``.
        shots: numbers of training images per class; there is a training with each.
        seeds: random seeds; there is a training with each.
        train: the training part, whose test at the end gives a score too.
        tests: further tests of the trained model.
        summary: the last column.
        name: the name of the file.
        seeds_of: seeds of single data sets, instead of ``seeds``.
    """

    title: str
    datasets: Sequence[str]
    shots: Sequence[int]
    seeds: Sequence[int]
    train: Part
    summary: Summary
    tests: Sequence[Part] = ()
    name: str = field(default="", kw_only=True)
    seeds_of: Mapping[str, Sequence[int]] = field(default_factory=dict, kw_only=True)

    def seeds_for(self, dataset: str) -> Sequence[int]:
        """Return the seeds of the trainings on a data set."""
        return self.seeds_of.get(dataset, self.seeds)

    def with_changes(self, changes: Mapping[str, Any]) -> Protocol:
        """Return this protocol with other data sets, shots or seeds; None changes nothing."""
        given: dict[str, Any] = {
            k: tuple(dict.fromkeys(v)) for k, v in changes.items() if v is not None
        }
        return replace(self, **given)


def read_protocol(name: str) -> Protocol:
    """Read ``assets/protocols/<name>.yaml``.

    Raises:
        UserError: there is no such file, or its content is invalid.

    >>> read_protocol("base2new").summary.name
    'HM'
    """
    path = find(ASSETS / "protocols", name, "protocol")
    raw = read_as(Protocol, path)
    return replace(
        raw,
        train=made_of(Part, raw.train, f"{path}: train"),
        tests=tuple(made_of(Part, part, f"{path}: tests") for part in raw.tests),
        summary=made_of(Summary, raw.summary, f"{path}: summary"),
        name=name,
    )

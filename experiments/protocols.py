"""Protocols: on what is trained, on what is tested, and where the runs write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, harmonic_mean
from typing import Any

from anchoropt_plugin import UserError

from .files import CONFIGS, find, made_of, read_as

MEANS = {"arithmetic": fmean, "harmonic": harmonic_mean}


@dataclass(frozen=True)
class Part:
    """One kind of run of a protocol.

    Attributes:
        score: under which name its accuracy stands in tables; may hold ``{dataset}``, ``{shots}``.
        classes: ``DATASET.SUBSAMPLE_CLASSES``.
        folder: where it writes, a template under the output folder.
        datasets: on which data sets; empty: on the one that is trained on.
    """

    score: str
    classes: str
    folder: str
    datasets: Sequence[str] = ()


@dataclass(frozen=True)
class Summary:
    """The last column of a protocol's tables.

    Attributes:
        name: of the column.
        mean: ``harmonic`` or ``arithmetic``, of the accuracies.
        over: ``all`` of them, or those of the ``tests``, without that of the training part.
    """

    name: str
    mean: str
    over: str = "all"

    def __post_init__(self) -> None:
        if self.mean not in MEANS or self.over not in ("all", "tests"):
            raise UserError(
                f"summary {self.name!r}: mean is one of {', '.join(MEANS)}, over is all or tests"
            )

    def of(self, scores: Sequence[float]) -> float:
        """The mean of some accuracies in per cent.

        >>> Summary("HM", "harmonic").of([60.0, 40.0])
        48.0
        """
        return float(MEANS[self.mean](scores))


@dataclass(frozen=True)
class Protocol:
    """What ``configs/protocols/*.yaml`` holds.

    Attributes:
        title: for people.
        datasets: to train on, by the names of their files in ``configs/datasets``.
        shots: pictures a class; each number is trained with.
        seeds: each is trained with.
        train: the training part, whose test at the end gives a score too.
        tests: further tests of what was trained.
        summary: the last column.
        name: of the file.
    """

    title: str
    datasets: Sequence[str]
    shots: Sequence[int]
    seeds: Sequence[int]
    train: Part
    summary: Summary
    tests: Sequence[Part] = ()
    name: str = field(default="", kw_only=True)

    def with_changes(self, changes: Mapping[str, Any]) -> Protocol:
        """This protocol on other data sets, shots or seeds; those given as None stay."""
        values = {**self.__dict__, **{k: tuple(v) for k, v in changes.items() if v is not None}}
        return Protocol(**values)


def read_protocol(name: str) -> Protocol:
    """Read ``configs/protocols/<name>.yaml``.

    Raises:
        UserError: There is no such file, or something in it cannot be.

    >>> read_protocol("base2new").summary.name
    'HM'
    """
    path = find(CONFIGS / "protocols", name, "protocol")
    raw = read_as(Protocol, path)
    return Protocol(
        **{
            **raw.__dict__,
            "train": made_of(Part, raw.train, f"{path}: train"),
            "tests": tuple(made_of(Part, part, f"{path}: tests") for part in raw.tests),
            "summary": made_of(Summary, raw.summary, f"{path}: summary"),
            "name": name,
        }
    )

"""Tables of methods: mean ± deviation over seeds, the difference to a reference, its p-value.

The last column is averaged as the field does it: the accuracies are averaged over seeds first, and
over data sets in the table of all of them, and the harmonic mean is of these averages. Its
deviation is that of the seeds' own harmonic means. Differences are tested by the paired t-test over
the seeds that both methods have.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

import pandas as pd
from scipy import stats

from .protocols import Protocol
from .published import Number, published_numbers

AVERAGE = "average"
"""The group of a table over all data sets."""


class Cell(NamedTuple):
    """Accuracy in per cent of a method, over seeds.

    ``delta`` is the difference to the reference and ``p`` that of the paired test; both are None
    where there is no reference, and p where fewer than two seeds or no differences are there.
    """

    mean: float
    std: float | None
    seeds: int
    delta: float | None = None
    p: float | None = None
    published: Number | None = None


@dataclass(frozen=True)
class Table:
    """Rows of methods, columns of scores and their summary.

    Attributes:
        rows: by method, then by column; a cell without a finished run is missing.
        seeds: how many each method is to have: one where nothing is trained.
    """

    title: str
    columns: Sequence[str]
    rows: dict[str, dict[str, Cell]]
    seeds: dict[str, int]

    @property
    def published(self) -> bool:
        """Whether a published number stands beside one of its cells."""
        return any(cell.published for row in self.rows.values() for cell in row.values())


def paired_p(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """The p-value of the paired t-test, two-sided; None where it says nothing.

    >>> round(paired_p([2.0, 4.0, 6.5], [1.0, 2.0, 3.0]), 3)
    0.096
    >>> paired_p([2.0, 3.0], [1.0, 2.0]) is None  # the same difference twice: no deviation
    True
    """
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    if len(differences) < 2 or max(differences) - min(differences) < 1e-9:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # nearly equal differences
        return float(stats.ttest_rel(ours, theirs).pvalue)


def tables(results: pd.DataFrame, protocol: Protocol) -> list[Table]:
    """A table for each data set that was trained on, and one over all where there are several."""
    if results.empty:
        return []
    out = [
        _table(group, part, protocol, str(group))
        for group, part in results.groupby("group", sort=False)
    ]
    if len(out) > 1:
        out.append(
            _table(AVERAGE, _averaged(results), protocol, f"average of {len(out)} data sets")
        )
    return out


def _averaged(results: pd.DataFrame) -> pd.DataFrame:
    """For each method, score and seed the mean over all groups; what lacks one is left out."""
    keys = ["method", "reference", "trainer", "score", "seed"]
    same = ["shots", "trained", "MODEL.BACKBONE.NAME"]
    groups = results.groupby(keys, sort=False)
    whole = groups["group"].nunique() == results["group"].nunique()
    means = groups["accuracy"].mean().to_frame().join(groups[same].first())
    means["datasets"] = " ".join(sorted(results["group"].unique()))
    return means[whole].reset_index()


def _table(group: str, results: pd.DataFrame, protocol: Protocol, title: str) -> Table:
    scores = list(dict.fromkeys(results["score"]))
    tested = set(scores)
    if protocol.summary.over == "tests":
        tested -= {part.score.format(dataset=group) for part in (protocol.train,)}
    values = {
        method: part.pivot_table(index="seed", columns="score", values="accuracy").reindex(
            columns=scores
        )
        for method, part in results.groupby("method", sort=False)
    }
    summary = protocol.summary
    over = [score for score in scores if score in tested]
    for frame in values.values():
        whole = frame[over].notna().all(axis=1)
        frame[summary.name] = [
            summary.of(row) if ok else None
            for row, ok in zip(frame[over].to_numpy().tolist(), whole, strict=True)
        ]
    references = dict(zip(results["method"], results["reference"], strict=True))
    rows = {}
    for method, frame in values.items():
        reference = values.get(references[method])
        cells = {column: _cell(frame, reference, column) for column in scores}
        means = [cells[score].mean for score in over if score in cells and cells[score].seeds]
        if len(means) == len(over):
            cells[summary.name] = _cell(frame, reference, summary.name, summary.of(means))
            if reference is not None:
                theirs = summary.of([reference[score].mean() for score in over])
                cells[summary.name] = cells[summary.name]._replace(delta=summary.of(means) - theirs)
        rows[method] = {name: cell for name, cell in cells.items() if cell.seeds}
    trained = dict(zip(results["method"], results["trained"], strict=True))
    seeds = {method: len(protocol.seeds) if trained[method] else 1 for method in rows}
    table = Table(title, [*scores, summary.name], rows, seeds)
    return _beside_published(table, group, results, protocol)


def _cell(
    frame: pd.DataFrame, reference: pd.DataFrame | None, column: str, mean: float | None = None
) -> Cell:
    ours = frame[column].dropna()
    if ours.empty:
        return Cell(float("nan"), None, 0)
    cell = Cell(
        fmean(ours) if mean is None else mean,
        float(ours.std()) if len(ours) > 1 else None,
        len(ours),
    )
    if reference is None:
        return cell
    theirs = reference[column].dropna()
    both = [seed for seed in ours.index if seed in theirs.index]
    if not both:
        return cell
    return cell._replace(
        delta=cell.mean - fmean(theirs), p=paired_p(ours[both].tolist(), theirs[both].tolist())
    )


def _beside_published(table: Table, group: str, results: pd.DataFrame, protocol: Protocol) -> Table:
    place = {
        "protocol": protocol.name,
        "backbone": results["MODEL.BACKBONE.NAME"].iloc[0],
        "shots": int(results["shots"].iloc[0]),
        "datasets": results["datasets"].iloc[0] if group == AVERAGE else group,
    }
    for method, row in table.rows.items():
        numbers = published_numbers(method, **place)
        for column in row:
            row[column] = row[column]._replace(published=numbers.get(column))
    return table


def entries(several: Sequence[Table]) -> Iterator[dict[str, object]]:
    """One row a cell, for tables.csv."""
    for table in several:
        for method, row in table.rows.items():
            for column, cell in row.items():
                number = cell.published
                yield {
                    "table": table.title,
                    "method": method,
                    "column": column,
                    **cell._asdict(),
                    "published": number.value if number else None,
                    "source": number.source if number else None,
                }

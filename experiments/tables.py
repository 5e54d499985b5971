"""Tables of methods: mean ± deviation over seeds, the difference to a reference, its p-value.

The last column is computed as is usual in the field: first the accuracies are averaged over seeds
(in the table of all data sets also over data sets), then the harmonic mean of these averages is
taken. The deviation of the last column is that of the harmonic means of single seeds. A paired
t-test compares the seeds that both methods have. A table with several p-values in a column also has
them corrected for their number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

import pandas as pd

from .protocols import Protocol
from .published import Number, published_numbers
from .significance import holm, paired_p

AVERAGE = "average"
"""The name of the table over all data sets."""


class Cell(NamedTuple):
    """The accuracy of a method in per cent, over seeds.

    ``delta`` is the difference to the reference, ``p`` the p-value of the paired test, ``p_holm``
    that value corrected for the number of tests in the same column of the table. They are None
    without a reference; p is also None with one seed or with equal differences, and p_holm if
    there is one test only.
    """

    mean: float
    std: float | None
    seeds: int
    delta: float | None = None
    p: float | None = None
    p_holm: float | None = None
    published: Number | None = None


@dataclass(frozen=True)
class Table:
    """A row for each method, a column for each score and one for their summary.

    Attributes:
        title: the title.
        columns: the names of the columns.
        rows: the cells by method and column, without cells that have no finished run.
        seeds: the planned number of seeds of each method: one for a method without training.
    """

    title: str
    columns: Sequence[str]
    rows: dict[str, dict[str, Cell]]
    seeds: dict[str, int]

    @property
    def published(self) -> bool:
        """Tell whether a cell has a published number."""
        return any(cell.published for row in self.rows.values() for cell in row.values())


def tables(results: pd.DataFrame, protocol: Protocol) -> list[Table]:
    """Return a table for each data set of the trainings, and with several their average."""
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
    """Return the mean over all groups for each method, score and seed that has all groups."""
    keys = ["method", "reference", "trainer", "score", "seed"]
    same = ["shots", "trained", "MODEL.BACKBONE.NAME"]
    groups = results.groupby(keys, sort=False)
    whole = groups["group"].nunique() == results["group"].nunique()
    means = groups["accuracy"].mean().to_frame().join(groups[same].first())
    means["datasets"] = " ".join(sorted(results["group"].unique()))
    return means[whole].reset_index()


def _table(group: str, results: pd.DataFrame, protocol: Protocol, title: str) -> Table:
    scores = list(dict.fromkeys(results["score"]))
    values = {
        method: part.pivot_table(index="seed", columns="score", values="accuracy").reindex(
            columns=scores
        )
        for method, part in results.groupby("method", sort=False)
    }
    summary = protocol.summary
    over = scores
    if summary.over == "tests":
        over = [score for score in scores if score != protocol.train.score.format(dataset=group)]
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
    datasets = protocol.datasets if group == AVERAGE else [group]
    planned = min(len(protocol.seeds_for(dataset)) for dataset in datasets)
    seeds = {method: planned if trained[method] else 1 for method in rows}
    table = Table(title, [*scores, summary.name], rows, seeds)
    _correct(table)
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


def _correct(table: Table) -> None:
    for column in table.columns:
        tested = {m: row[column] for m, row in table.rows.items() if column in row}
        ps = {method: cell.p for method, cell in tested.items() if cell.p is not None}
        if len(ps) > 1:
            for method, p_holm in zip(ps, holm(list(ps.values())), strict=True):
                table.rows[method][column] = tested[method]._replace(p_holm=p_holm)


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
    """Yield a row for each cell, for tables.csv."""
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

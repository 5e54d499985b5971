"""Tables of methods: mean ± deviation over seeds, the difference to a reference, its p-value.

The last column is computed as is usual in the field: first the accuracies are averaged over seeds
(in the table of all data sets also over data sets), then the harmonic mean of these averages is
taken, over the seeds that have all of them. The deviation of the last column is that of the
harmonic means of single seeds. The difference and a paired t-test are of the seeds that both
methods have. In the last column the test takes the harmonic means of single seeds, whose mean
difference can be another number than the difference in the table. It is left out if the differences
of each of the averaged accuracies are equal in all seeds: those of their harmonic means are almost,
not quite, equal, which a test takes for certainty. A table with several p-values in
a column also has them corrected for their number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd

from .protocols import Protocol
from .published import Number, published_numbers
from .significance import holm, paired_p


class Cell(NamedTuple):
    """The accuracy of a method in per cent, over seeds.

    ``delta`` is the difference to the reference over the seeds that both have, ``p`` the p-value of
    the paired test, ``p_holm`` that value corrected for the number of tests in the same column of
    the table. They are None without a reference; p is also None with one seed or with equal
    differences, and p_holm if there is one test only.
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

    A summary of one score repeats that score, and has no column.

    Attributes:
        title: the title.
        columns: the names of the columns.
        rows: the cells by method and column, without cells that have no finished run.
        seeds: the planned number of seeds of each method: one for a method without training.
        values: the accuracies of each method, by seed and column.
        references: the method that each method is compared with, or "".
        too_few: the fewest and the most training images of a class, by the number of shots, where a
            class has fewer images than shots.
        same: methods with the same predictions, to the last digit, in all runs.
    """

    title: str
    columns: Sequence[str]
    rows: dict[str, dict[str, Cell]]
    seeds: dict[str, int]
    values: dict[str, pd.DataFrame]
    references: dict[str, str]
    too_few: dict[int, tuple[int, int]]
    same: list[list[str]]

    @property
    def published(self) -> bool:
        """Tell whether a cell has a published number."""
        return any(cell.published for row in self.rows.values() for cell in row.values())

    @property
    def of_seeds(self) -> str:
        """Return how many seeds the means with a deviation have, in words; "" if there are none."""
        cells = (cell for row in self.rows.values() for cell in row.values())
        counts = {cell.seeds for cell in cells if cell.std is not None}
        if not counts:
            return ""
        fewest, most = min(counts), max(counts)
        return f"{fewest} to {most} seeds" if fewest < most else f"{most} seeds"


def tables(results: pd.DataFrame, protocol: Protocol, published: bool = True) -> list[Table]:
    """Return a table for each data set of the trainings, and with several their average.

    Args:
        results: a row for each finished run.
        protocol: the protocol.
        published: whether published numbers stand beside those of the same name and setting.
    """
    if results.empty:
        return []
    groups = dict(list(results.groupby("group", sort=False)))
    out = [
        _table(group, [group], part, protocol, published, _too_few(part), _same(part))
        for group, part in groups.items()
    ]
    averaged = _averaged(results)
    if len(groups) > 1 and not averaged.empty:
        seeds, all_seeds = _seeds(averaged), _seeds(results)
        of_seeds = f", seeds {', '.join(map(str, seeds))}" if seeds != all_seeds else ""
        title = f"average of {len(groups)} data sets{of_seeds}"
        about = _too_few(results), _same(results)
        out.append(_table(title, list(groups), averaged, protocol, published, *about))
    return out


def _seeds(rows: pd.DataFrame) -> list[int]:
    return sorted(rows.loc[rows["has_seeds"].astype(bool), "seed"].unique())


def _too_few(results: pd.DataFrame) -> dict[int, tuple[int, int]]:
    if "fewest_images" not in results:  # no training here told them
        return {}
    shots = results.dropna(subset="fewest_images").groupby("shots")
    counts = shots.agg({"fewest_images": "min", "most_images": "max"}).astype(int)
    return {n: (fewest, most) for n, fewest, most in counts.itertuples() if fewest < n}


def _same(results: pd.DataFrame) -> list[list[str]]:
    """Return the methods with the same predictions: a setting of theirs has no effect."""
    if "predictions" not in results:
        return []
    of_run = ["group", "score", "shots", "seed", "predictions"]
    methods: dict[str, list[str]] = {}
    for method, part in results.groupby("method", sort=False):
        if part["predictions"].notna().all():
            methods.setdefault(repr(sorted(part[of_run].to_numpy().tolist())), []).append(method)
    return [names for names in methods.values() if len(names) > 1]


def _averaged(results: pd.DataFrame) -> pd.DataFrame:
    """Return the mean over all groups for each method, score and seed that has all groups."""
    keys = ["method", "reference", "trainer", "score", "seed"]
    same = ["shots", "has_seeds", "MODEL.BACKBONE.NAME"]
    groups = results.groupby(keys, sort=False)
    whole = groups["group"].nunique() == results["group"].nunique()
    means = groups["accuracy"].mean().to_frame().join(groups[same].first())
    return means[whole].reset_index()


def _table(
    title: str,
    datasets: Sequence[str],
    results: pd.DataFrame,
    protocol: Protocol,
    published: bool,
    too_few: dict[int, tuple[int, int]],
    same: list[list[str]],
) -> Table:
    summary = protocol.summary
    scores = list(results["score"].unique())
    over = scores
    if summary.over == "tests":
        over = [score for score in scores if score != protocol.train.score.format(dataset=title)]
    methods = dict(list(results.groupby("method", sort=False)))
    values = {}
    for method, part in methods.items():
        frame = part.pivot_table(index="seed", columns="score", values="accuracy")
        frame = frame.reindex(columns=scores)
        whole = frame[over].dropna()
        of_seeds = {seed: summary.of(row.tolist()) for seed, row in whole.iterrows()}
        frame[summary.name] = pd.Series(of_seeds, dtype=float)
        values[method] = frame

    def mean(method: str, column: str, seeds: pd.Index) -> float:
        averages = values[method].loc[seeds].mean()
        is_summary = column == summary.name
        return summary.of(averages[over].tolist()) if is_summary else float(averages[column])

    def test(method: str, reference: str, column: str, seeds: pd.Index) -> float | None:
        ours, theirs = (values[name].loc[seeds, column].tolist() for name in (method, reference))
        return paired_p(ours, theirs)

    place = {
        "protocol": protocol.name,
        "backbone": results["MODEL.BACKBONE.NAME"].iloc[0],
        "shots": int(results["shots"].iloc[0]),
        "datasets": " ".join(sorted(datasets)),
    }
    planned = min(len(protocol.seeds_for(dataset)) for dataset in datasets)
    columns = [*scores, summary.name] if len(over) > 1 else scores
    by_seed = {method: frame[columns] for method, frame in values.items()}
    table = Table(title, columns, {}, {}, by_seed, {}, too_few, same)
    for method, part in methods.items():
        reference, has_seeds = part[["reference", "has_seeds"]].iloc[0]
        table.seeds[method] = planned if has_seeds else 1
        table.references[method] = reference if reference in values else ""
        table.rows[method] = row = {}
        numbers = published_numbers(method, **place) if published else {}
        for column in table.values[method].dropna(axis="columns", how="all"):
            ours = values[method][column].dropna()
            std = float(ours.std()) if len(ours) > 1 else None
            of_all = mean(method, column, ours.index)
            cell = Cell(of_all, std, len(ours), published=numbers.get(column))
            theirs = values[reference][column].dropna() if reference in values else ours[:0]
            both = ours.index.intersection(theirs.index)
            if len(both):  # a run may have failed: other seeds are not compared
                delta = mean(method, column, both) - mean(reference, column, both)
                made_of = over if column == summary.name else [column]
                ps = (test(method, reference, name, both) for name in made_of)
                can_differ = any(p is not None for p in ps)
                p = test(method, reference, column, both) if can_differ else None
                cell = cell._replace(delta=delta, p=p)
            row[column] = cell
    _correct(table)
    return table


def _correct(table: Table) -> None:
    """Add the p-values that are corrected for their number in a column."""
    for column in table.columns:
        cells = [(row, row[column].p) for row in table.rows.values() if column in row]
        tested = [(row, p) for row, p in cells if p is not None]
        if len(tested) > 1:
            corrected = holm([p for _, p in tested])
            for (row, _), p_holm in zip(tested, corrected, strict=True):
                row[column] = row[column]._replace(p_holm=p_holm)


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

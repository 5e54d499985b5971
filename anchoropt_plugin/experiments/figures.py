"""Figures of results: accuracies with their seeds, few-shot curves, ablation lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..report.figures import new_figure
from .factors import number
from .formats import heading
from .plan import Run
from .tables import Cell, Table

PANELS = 4
"""The most columns of a table that are drawn side by side."""
_HOST, _CHANGED, _CONTROL, _PAIR = "tab:blue", "tab:orange", "tab:green", "0.75"
_ALONE = ("tab:purple", "tab:brown", "tab:olive")
"""The colours of rows that no other row is compared with, and that are compared with none."""
_SEED: dict[str, Any] = {"marker": "o", "ms": 4, "mfc": "none", "ls": "", "alpha": 0.6}


def legend_of(table: Table) -> str:
    """Return what points, whiskers and circles show, in words."""
    points = "points are the numbers of the table"
    if not table.of_seeds:
        return f"{points}, each of one seed"
    whiskers = f"whiskers ± one sample standard deviation of {table.of_seeds}"
    return f"{points}, {whiskers}, circles single seeds"


def accuracies(table: Table) -> Figure:
    """Draw a panel for each column, with a line of it for each method.

    A line has the accuracy of each seed, their mean and deviation, and the published number. Points
    of the same seed are joined between a host with AnchorOPT and the host alone.
    """
    places = {method: place for place, method in enumerate(table.rows)}
    colors = _colors(table)
    across = min(PANELS, len(table.columns))
    down = -(-len(table.columns) // across)
    height = down * (0.28 * len(places) + 0.8) + 0.5
    figure, axes = new_figure(down, across, 2.2 * across + 3, height, sharey=True)
    panels = [axis for line in axes for axis in line]
    for axis, column in zip(panels, table.columns, strict=False):
        for method, place in places.items():
            if column not in table.rows[method]:
                continue
            reference, cell = table.references[method], table.rows[method][column]
            paired, color = _is_paired(table, method), colors[method]
            above, below = place - 0.16, place + 0.16
            if paired:
                of_both = [table.values[name][column] for name in (reference, method)]
                pairs = pd.concat(of_both, axis=1).dropna().to_numpy().T
                ends = [places[reference] + 0.16, below]
                axis.plot(pairs, ends, color=_PAIR, lw=0.8, zorder=1)
            seeds = table.values[method][column].dropna()
            if len(seeds) > 1:
                axis.plot(seeds, [below] * len(seeds), color=color, **_SEED)
            axis.errorbar(cell.mean, above, xerr=cell.std, fmt="o", color=color, capsize=3, ms=5)
            if cell.published:
                axis.plot(cell.published.value, above, "D", color="black", ms=4)
        _end_near_100(axis)
        axis.set_title(heading(column), fontsize="medium")
        axis.set_xlabel("accuracy, %")
        axis.grid(axis="x", color="0.92")
        axis.set_axisbelow(True)
    for axis in panels[len(table.columns) :]:
        axis.set_axis_off()
    panels[0].set_yticks([*places.values()], [*places])
    panels[0].set_ylim(len(places) - 0.4, -0.6)  # the first method at the top
    figure.suptitle(table.title, fontsize="medium")
    figure.legend(handles=_legend(table), loc="outside lower center", ncols=4, fontsize="small")
    return figure


def _end_near_100(axis: Any) -> None:
    """Let an axis of accuracies end at 100 or at the end of the longest whisker."""
    left, right = axis.get_xlim()
    end = max(100.0, axis.dataLim.x1) + (right - left) / 50
    axis.set_xlim(right=min(right, end))


def _colors(table: Table) -> dict[str, str]:
    """Return the colour of each row: that of its kind, or one of its own if it stands alone."""
    found, alone = {}, cycle(_ALONE)
    for method, reference in table.references.items():
        if reference:
            found[method] = _CHANGED if _is_paired(table, method) else _CONTROL
        else:
            found[method] = _HOST if method in table.references.values() else next(alone)
    return found


def _is_paired(table: Table, method: str) -> bool:
    """Whether a method is a host with AnchorOPT, and its reference the host alone."""
    reference = table.references[method]
    return bool(reference) and not table.references[reference]


def has_pairs(table: Table) -> bool:
    """Tell whether ``accuracies`` joins seeds."""
    return any(_is_paired(table, method) for method in table.rows)


def _legend(table: Table) -> list[Line2D]:
    """Return the signs that are in the figure of a table, with their meanings."""
    grey, point = "0.3", "number in the table, ± deviation"
    signs = [
        Line2D([], [], marker="o", ms=5, ls="", color=grey, label=point),
        Line2D([], [], color=grey, label="one seed", **_SEED),
    ]
    if has_pairs(table):
        signs.append(Line2D([], [], color=_PAIR, label="the same seed"))
    if table.published:
        signs.append(Line2D([], [], marker="D", ls="", ms=4, color="black", label="published"))
    return signs


def _line(axis: Any, cells: Mapping[float, tuple[Cell, pd.Series]], label: str, style: str) -> None:
    """Draw the cells of a method at their places, with the accuracies of the seeds."""
    means = [cell.mean for cell, _ in cells.values()]
    deviations = [cell.std or 0 for cell, _ in cells.values()]
    (drawn, *_) = axis.errorbar([*cells], means, deviations, fmt=style, label=label, capsize=3)
    for place, (_, seeds) in cells.items():
        axis.plot([place] * len(seeds), seeds, color=drawn.get_color(), **_SEED)


def few_shot_curves(table: Table) -> Figure:
    """Draw accuracy over the images per class, a line for each method."""
    figure, ((axis,),) = new_figure(1, 1, 8, 4)
    shots = [column for column in table.columns if column.isdecimal()]
    for place, (method, row) in enumerate(table.rows.items()):
        seeds, beside = table.values[method], 1.03**place  # else whiskers cover each other
        cells = {int(n) * beside: (row[n], seeds[n].dropna()) for n in shots if n in row}
        _line(axis, cells, method, "o-")
    axis.set_xscale("log", base=2)
    axis.set_xticks([int(column) for column in shots], [heading(column) for column in shots])
    axis.set(xlabel="training images per class, at most", ylabel="accuracy, %", title=table.title)
    figure.legend(loc="outside right upper", fontsize="small")
    return figure


def ablation_lines(table: Table, factors: Mapping[str, Mapping[str, str]]) -> Figure | None:
    """Draw the last column over the values of each factor; None if no factor has two values.

    Args:
        table: the table of an ablation.
        factors: for each factor, its values in order and the method with each value.
    """
    last = table.columns[-1]
    cells_of = {
        method: (row[last], table.values[method][last].dropna())
        for method, row in table.rows.items()
        if last in row
    }
    known = {
        name: {value: cells_of[method] for value, method in of.items() if method in cells_of}
        for name, of in factors.items()
    }
    known = {name: of for name, of in known.items() if len(of) > 1}
    if not known:
        return None
    columns = min(3, len(known))
    rows = -(-len(known) // columns)
    figure, axes = new_figure(rows, columns, 10, 2.6 * rows)
    panels = [axis for line in axes for axis in line]
    for axis, (name, cells) in zip(panels, known.items(), strict=False):
        is_ordered = all(number(value) is not None for value in cells)
        _line(axis, dict(enumerate(cells.values())), name, "o-" if is_ordered else "o")
        names = [value or "–" for value in cells]
        axis.set_xticks(range(len(cells)), names, rotation=20 if len(cells) > 3 else 0)
        axis.set(title=name, ylabel=f"{heading(last)}, %")
    for axis in panels[len(known) :]:
        axis.set_axis_off()
    return figure


def folders_of(runs: Iterator[Run] | Sequence[Run], group: str) -> dict[str, list[Path]]:
    """Return the output folders of each method's trainings on the data set ``group``."""
    found: dict[str, list[Path]] = {}
    for run in runs:
        if run.trains and run.group == group:
            found.setdefault(run.method.name, []).append(run.folder)
    return found

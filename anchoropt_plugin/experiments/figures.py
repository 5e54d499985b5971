"""Figures of results: bars, few-shot curves, ablation lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # figures are files: no screen is needed

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..files.atomic import atomic_write
from ..report.figures import FORMATS, rendered
from .factors import number
from .plan import Run
from .tables import Cell, Table


def write_figure(figure: Figure, folder: Path, name: str) -> bytes:
    """Write a figure as ``<name>.png``, ``.pdf`` and ``.svg``, close it, and return the SVG.

    The same figure gives the same files, byte by byte.
    """
    for kind in FORMATS:
        with atomic_write(folder / f"{name}.{kind}") as file:
            file.write(rendered(figure, kind))
    plt.close(figure)
    return (folder / f"{name}.svg").read_bytes()


def bars(table: Table) -> Figure:
    """Draw a group of bars for each column, a bar for each method, and published numbers."""
    figure, axis = plt.subplots(figsize=(10, 3.8), layout="constrained")
    width = 0.85 / max(len(table.rows), 1)
    lowest = 100.0
    for index, (method, row) in enumerate(table.rows.items()):
        shift = (index - (len(table.rows) - 1) / 2) * width
        x = [table.columns.index(column) + shift for column in row]
        means = [cell.mean for cell in row.values()]
        deviations = [cell.std or 0 for cell in row.values()]
        lowest = min([lowest, *(mean - std for mean, std in zip(means, deviations, strict=True))])
        color = matplotlib.colormaps["tab20"](index % 20)
        line = {"elinewidth": 0.8}
        axis.bar(x, means, width, yerr=deviations, color=color, label=method, error_kw=line)
        known = {
            at: c.published.value for at, c in zip(x, row.values(), strict=True) if c.published
        }
        if known:
            axis.scatter([*known], [*known.values()], marker="D", color="black", s=14, zorder=3)
    axis.set_xticks(range(len(table.columns)), table.columns)
    axis.set(ylabel="accuracy, %", title=table.title, ylim=(max(0.0, lowest - 5), None))
    figure.legend(loc="outside right upper", fontsize="small")
    return figure


def _line(axis: Axes, cells: Mapping[int, Cell], label: str, style: str) -> None:
    means = [cell.mean for cell in cells.values()]
    deviations = [cell.std or 0 for cell in cells.values()]
    axis.errorbar(list(cells), means, deviations, fmt=style, label=label, capsize=2)


def few_shot_curves(table: Table) -> Figure:
    """Draw accuracy over the images per class, a line for each method."""
    figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
    *shots, _ = table.columns
    for method, row in table.rows.items():
        cells = {int(column): row[column] for column in shots if column in row}
        _line(axis, cells, method, "o-")
    axis.set_xscale("log", base=2)
    axis.set_xticks([int(column) for column in shots], shots)
    axis.set(xlabel="images per class", ylabel="accuracy, %", title=table.title)
    figure.legend(loc="outside right upper", fontsize="small")
    return figure


def ablation_lines(table: Table, factors: Mapping[str, Mapping[str, str]]) -> Figure | None:
    """Draw the last column over the values of each factor; None if no factor has two values.

    Args:
        table: the table of an ablation.
        factors: for each factor, its values in order and the method with each value.
    """
    last = table.columns[-1]
    cells_of = {method: row[last] for method, row in table.rows.items() if last in row}
    known = {
        name: {value: cells_of[method] for value, method in of.items() if method in cells_of}
        for name, of in factors.items()
    }
    known = {name: of for name, of in known.items() if len(of) > 1}
    if not known:
        return None
    columns = min(3, len(known))
    rows = -(-len(known) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(10, 2.6 * rows), layout="constrained", squeeze=False
    )
    for axis, (name, cells) in zip(axes.flat, known.items(), strict=False):
        is_ordered = all(number(value) is not None for value in cells)
        _line(axis, dict(enumerate(cells.values())), name, "o-" if is_ordered else "o")
        names = [value or "–" for value in cells]
        axis.set_xticks(range(len(cells)), names, rotation=20 if len(cells) > 3 else 0)
        axis.set(title=name, ylabel=f"{last}, %")
    for axis in axes.flat[len(known) :]:
        axis.set_axis_off()
    return figure


def folders_of(runs: Iterator[Run] | Sequence[Run], group: str) -> dict[str, list[Path]]:
    """Return the output folders of each method's trainings on the data set ``group``."""
    found: dict[str, list[Path]] = {}
    for run in runs:
        if run.trains and run.group == group:
            found.setdefault(run.method.name, []).append(run.folder)
    return found

"""Figures of results: bars, few-shot curves, ablation lines, training, position matrices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # figures are files: no screen is needed

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from anchoropt_plugin.files.atomic import atomic_write
from anchoropt_plugin.method.order import token_names

from .factors import number
from .history import read_epochs, read_positions
from .plan import Run
from .tables import Cell, Table

MOMENTS = 5
"""The number of epochs at which a position matrix is drawn."""
MATRICES = 8
"""The number of methods, the first ones, whose position matrices are drawn."""


FORMATS = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None},
    "svg": {"Date": None},
}
"""The formats of each figure; None leaves out metadata that changes from run to run."""
_STYLE = {
    "pdf.fonttype": 42,  # publishers refuse matplotlib's default, Type 3 fonts
    "svg.hashsalt": "anchoropt",  # ids of elements are random without it
}


def write_figure(figure: Figure, folder: Path, name: str) -> bytes:
    """Write a figure as ``<name>.png``, ``.pdf`` and ``.svg``, close it, and return the SVG.

    The same figure gives the same files, byte by byte.
    """
    with matplotlib.rc_context(_STYLE):
        for kind, metadata in FORMATS.items():
            with atomic_write(folder / f"{name}.{kind}") as file:
                figure.savefig(file, format=kind, dpi=110, metadata=metadata)
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


def training_curves(runs: Mapping[str, Sequence[Path]]) -> Figure | None:
    """Draw training loss and accuracy over the epochs; bands span the seeds of a method.

    Returns:
        The figure, or None if no run has written its epochs.
    """
    histories = {name: pd.concat(map(read_epochs, folders)) for name, folders in runs.items()}
    histories = {name: history for name, history in histories.items() if len(history)}
    if not histories:
        return None
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
    for name, history in histories.items():
        epochs = history.rename(columns={"acc": "accuracy"}).groupby("epoch")
        for axis, column in ((left, "loss"), (right, "accuracy")):
            mean = epochs[column].mean()
            axis.plot(mean.index, mean, label=name if column == "loss" else None)
            low, high = epochs[column].min(), epochs[column].max()
            axis.fill_between(mean.index, low, high, alpha=0.2)
            axis.set(xlabel="epoch", ylabel=f"training {column}")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.set_yscale("log")
    figure.legend(loc="outside right upper", fontsize="small")
    return figure


def position_matrices(runs: Mapping[str, Path]) -> Figure | None:
    """Draw the relaxed position matrix at some epochs, a row for each method.

    Returns:
        The figure, or None if no run has a position matrix.
    """
    found = {name: read_positions(folder) for name, folder in runs.items()}
    histories = dict([entry for entry in found.items() if entry[1][0]][:MATRICES])
    if not histories:
        return None
    columns = min(MOMENTS, max(len(history) for history, _ in histories.values()))
    size = 2 * columns, 2.3 * len(histories) + 0.4
    figure, axes = plt.subplots(
        len(histories), columns, figsize=size, layout="constrained", squeeze=False
    )
    for row, (name, (history, n_soft)) in zip(axes, histories.items(), strict=True):
        steps = max(columns - 1, 1)
        moments = sorted({round(i * (len(history) - 1) / steps) for i in range(columns)})
        n_slots = len(history[0]["P"])
        tokens = token_names(n_soft, n_slots - n_soft)
        for axis, moment in zip(row, moments, strict=False):
            # Cells as vectors; imshow would put a bitmap into the PDF and the SVG.
            image = axis.pcolormesh(
                history[moment]["P"], vmin=0, vmax=1, cmap="viridis", edgecolors="face", lw=0.1
            )
            axis.set_aspect("equal")
            axis.invert_yaxis()  # slot 1 at the top
            axis.set_title(f"epoch {history[moment]['epoch']}", fontsize="small")
            middles = [slot + 0.5 for slot in range(n_slots)]
            numbers = [str(slot + 1) for slot in range(n_slots)]
            axis.set_xticks(middles, tokens, fontsize="x-small")
            axis.set_yticks(middles, numbers, fontsize="x-small")
        for axis in row[len(moments) :]:
            axis.set_axis_off()
        row[0].set_ylabel(name, fontsize="small")
    scale = figure.colorbar(image, ax=axes, shrink=0.6)
    scale.solids.set_rasterized(False)
    return figure


def folders_of(runs: Iterator[Run] | Sequence[Run], group: str) -> dict[str, list[Path]]:
    """Return the output folders of each method's trainings on the data set ``group``."""
    found: dict[str, list[Path]] = {}
    for run in runs:
        if run.trains and run.group == group:
            found.setdefault(run.method.name, []).append(run.folder)
    return found

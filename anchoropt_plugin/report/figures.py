"""Figures of runs: the training, the position matrix and the calibration."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..files.atomic import atomic_write
from ..method.order import token_names
from .history import read_epochs, read_positions
from .measures import N_BINS, Calibration

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOMENTS = 5
"""The number of epochs at which a position matrix is drawn."""
LABELS = 8
"""About the most labels on a side of a position matrix; of more slots, every k-th has one."""
MATRICES = 8
"""The number of methods, the first ones, whose position matrices are drawn."""
FORMATS = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None},
    "svg": {"Date": None},
}
"""The formats of a figure; None leaves out metadata that changes from run to run."""
_STYLE: Any = {
    "pdf.fonttype": 42,  # publishers refuse matplotlib's default, Type 3 fonts
    "svg.hashsalt": "anchoropt",  # ids of elements are random without it
}
_SHOWN = {"loss": "loss", "acc": "accuracy, %"}
"""The numbers of an epoch that are drawn, with their names."""


def new_figure(
    rows: int, columns: int, width: float, height: float, **named: Any
) -> tuple[Figure, list[list[Any]]]:
    """Return a figure of a size in inches, and its axes in rows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **named).tolist()


def rendered(figure: Figure, kind: str) -> bytes:
    """Return a figure as a file of a kind of ``FORMATS``: of the same figure the same bytes."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(buffer, format=kind, dpi=110, metadata=FORMATS[kind])
    return buffer.getvalue()


def write_figure(figure: Figure, folder: Path, name: str) -> bytes:
    """Write a figure as ``<name>.png``, ``.pdf`` and ``.svg``, and return the SVG.

    The same figure gives the same files, byte by byte.
    """
    folder.mkdir(parents=True, exist_ok=True)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the layout takes a third of the time, and is found
    for kind in FORMATS:
        with atomic_write(folder / f"{name}.{kind}") as file:
            file.write(rendered(figure, kind))
    return (folder / f"{name}.svg").read_bytes()


def training_curves(runs: Mapping[str, Sequence[Path]], title: str = "") -> Figure | None:
    """Draw training loss and accuracy over the epochs; bands span the seeds of a method.

    Args:
        runs: the output folders of each method.
        title: the title of the figure.

    Returns:
        The figure, or None if no run has written its epochs.
    """
    from matplotlib.ticker import MaxNLocator

    drawn: dict[str, dict[str, dict[int, list[float]]]] = {}
    for name, folders in runs.items():
        for epoch in (epoch for folder in folders for epoch in read_epochs(folder)):
            for key in _SHOWN.keys() & epoch.keys():
                of_key = drawn.setdefault(key, {}).setdefault(name, defaultdict(list))
                of_key[epoch["epoch"]].append(epoch[key])
    shown = [key for key in _SHOWN if key in drawn]
    if not shown:
        return None
    figure, (axes,) = new_figure(1, len(shown), 5.5 * len(shown), 3.6)
    for axis, key in zip(axes, shown, strict=True):
        for name, by_epoch in drawn[key].items():
            epochs = sorted(by_epoch)
            values = [by_epoch[epoch] for epoch in epochs]
            label = name if key == shown[0] else None
            axis.plot(epochs, [np.mean(seeds) for seeds in values], label=label)
            axis.fill_between(epochs, [*map(min, values)], [*map(max, values)], alpha=0.2)
        axis.set(xlabel="epoch", ylabel=f"training {_SHOWN[key]}")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        seen = [value for of_run in drawn[key].values() for of in of_run.values() for value in of]
        if key == "loss" and 0 < 10 * min(seen) <= max(seen):  # a short log axis has odd ticks
            axis.set_yscale("log")
    of_seeds = any(len(folders) > 1 for folders in runs.values())
    band = "mean of the seeds\n(band: their range)" if of_seeds else None
    figure.legend(loc="outside right upper", fontsize="small", title=band, title_fontsize="small")
    figure.suptitle(title, fontsize="medium")
    return figure


def position_matrices(runs: Mapping[str, Path], title: str = "") -> Figure | None:
    """Draw the relaxed position matrix at some epochs, a row for each method.

    Args:
        runs: the output folder of each method.
        title: the title of the figure.

    Returns:
        The figure, or None if no run has a position matrix.
    """
    found = {name: read_positions(folder) for name, folder in runs.items()}
    histories = dict([entry for entry in found.items() if entry[1][0]][:MATRICES])
    if not histories:
        return None
    columns = min(MOMENTS, max(len(history) for history, _ in histories.values()))
    # With room for the colour bar and the title.
    size = 2 * columns + 0.9, 2.2 * len(histories) + 0.2 + 0.2 * bool(title)
    figure, axes = new_figure(len(histories), columns, *size)
    for row, (name, (history, n_soft)) in zip(axes, histories.items(), strict=True):
        steps = max(columns - 1, 1)
        moments = sorted({round(i * (len(history) - 1) / steps) for i in range(columns)})
        n_slots = len(history[0]["P"])
        tokens = token_names(n_soft, n_slots - n_soft)
        step = -(-n_slots // LABELS)
        labelled = [*range(0, n_soft - step + 1, step), *range(n_soft, n_slots, step)]
        for axis, moment in zip(row, moments, strict=False):
            # Cells as vectors; imshow would put a bitmap into the PDF and the SVG.
            image = axis.pcolormesh(
                history[moment]["P"], vmin=0, vmax=1, cmap="viridis", edgecolors="face", lw=0.1
            )
            axis.set_aspect("equal")
            axis.invert_yaxis()  # slot 1 at the top
            axis.set_title(f"epoch {history[moment]['epoch']}", fontsize="small")
            middles = [slot + 0.5 for slot in labelled]
            names, numbers = [tokens[slot] for slot in labelled], [slot + 1 for slot in labelled]
            axis.set_xticks(middles, names, fontsize="x-small")
            axis.set_yticks(middles, numbers, fontsize="x-small")
        for axis in row[len(moments) :]:
            axis.set_axis_off()
        row[0].set_ylabel(f"{name}\nslot", fontsize="small")
        row[0].set_xlabel("token", fontsize="small")
    panels = [axis for row in axes for axis in row]
    scale: Any = figure.colorbar(image, ax=panels, shrink=0.6, label="probability")
    scale.solids.set_rasterized(False)
    figure.suptitle(title, fontsize="medium")
    return figure


def reliability_diagram(calibration: Calibration) -> Figure:
    """Draw the accuracy of each bin over its mean probability, and below its share of images."""
    figure, ((upper,), (lower,)) = new_figure(
        2, 1, 5, 5.2, sharex=True, gridspec_kw={"height_ratios": [3, 1]}
    )
    seen = calibration.count > 0
    accuracy, probability = calibration.accuracy[seen], calibration.probability[seen]
    upper.plot([0, 1], [0, 1], "--", color="grey", label="perfect calibration")
    upper.vlines(probability, accuracy, probability, "tab:red", label="gap to it")
    upper.plot(probability, accuracy, "o", color="tab:blue", label="a bin", clip_on=False)
    upper.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    figure.legend(loc="outside upper left", fontsize="small", ncols=3)
    share = calibration.count / calibration.count.sum()
    lower.bar((np.arange(N_BINS) + 0.5) / N_BINS, share, 0.9 / N_BINS, color="grey")
    lower.set(xlabel="probability of the prediction", ylabel="share of images")
    return figure

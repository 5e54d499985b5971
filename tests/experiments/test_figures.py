"""Figures as files: all formats, vectors only, the same bytes again."""

from __future__ import annotations

import itertools
import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgba

from anchoropt_plugin.experiments.figures import accuracies, few_shot_curves
from anchoropt_plugin.experiments.protocols import read_protocol
from anchoropt_plugin.experiments.tables import tables
from anchoropt_plugin.files.run_events import append_event
from anchoropt_plugin.report.figures import (
    FORMATS,
    position_matrices,
    training_curves,
    write_figure,
)

N_EPOCHS = 7


@pytest.fixture
def folder(tmp_path):
    """Return the output folder of a run with a history of its position matrix."""
    return with_history(tmp_path, 5, N_EPOCHS)


def with_history(tmp_path, n_slots, n_epochs):
    generator = torch.Generator().manual_seed(0)
    size = n_slots, n_slots
    matrices = [torch.randn(size, generator=generator).softmax(-1) for _ in range(n_epochs)]
    lines = [
        json.dumps({"epoch": epoch + 1, "temperature": 1.0, "P": matrix.tolist()})
        for epoch, matrix in enumerate(matrices)
    ]
    (tmp_path / "position.jsonl").write_text("\n".join(lines) + "\n")
    record = {"backbone": "tiny", "classes": ["one"], "settings": {"anchor_len": 1}}
    (tmp_path / "anchoropt.json").write_text(json.dumps(record))
    return tmp_path


def test_every_figure_is_a_png_a_pdf_and_an_svg_without_a_date(folder):
    contents = []
    for name in ("first", "second"):
        svg = write_figure(position_matrices({"CoOp_AnchorOPT": folder}), folder, name)
        contents.append([(folder / f"{name}.{kind}").read_bytes() for kind in FORMATS])
        assert svg == contents[-1][-1]
    assert contents[0] == contents[1]
    png, pdf, svg = contents[0]
    assert png[:4] == b"\x89PNG" and pdf[:5] == b"%PDF-" and b"<svg" in svg[:1000]
    assert b"CreationDate" not in pdf and b"dc:date" not in svg
    assert b"/Type3" not in pdf


def test_the_matrix_is_drawn_in_vectors(folder):
    svg = write_figure(position_matrices({"CoOp_AnchorOPT": folder}), folder, "matrix").decode()
    assert "<image" not in svg and b"/Subtype /Image" not in (folder / "matrix.pdf").read_bytes()


def test_the_first_slot_is_at_the_top_and_every_cell_is_drawn(folder):
    figure = position_matrices({"CoOp_AnchorOPT": folder}, "digits")
    assert figure.get_suptitle() == "digits"
    history = [json.loads(line) for line in (folder / "position.jsonl").read_text().splitlines()]
    for axis, epoch in zip(figure.axes, (1, 3, 4, 5, 7), strict=False):
        assert axis.get_title() == f"epoch {epoch}"
        (mesh,) = axis.collections
        assert mesh.get_array().data.reshape(5, 5).tolist() == history[epoch - 1]["P"]
        bottom, top = axis.get_ylim()
        assert bottom > top  # slot 1 has the lowest y, so it is the uppermost row
        labels = [label.get_text() for label in axis.get_xticklabels()]
        assert labels == ["v1", "v2", "v3", "v4", "A1"]
        assert re.fullmatch(r"[1-5]{5}", "".join(t.get_text() for t in axis.get_yticklabels()))


@pytest.mark.parametrize("n_epochs", [1, 7])
@pytest.mark.parametrize("n_soft", [4, 16, 17, 32])
def test_labels_of_many_tokens_do_not_overlap(tmp_path, n_soft, n_epochs):
    figure = position_matrices({"CoOp_AnchorOPT": with_history(tmp_path, n_soft + 1, n_epochs)})
    figure.draw_without_rendering()  # places the labels
    *panels, bar = figure.axes
    assert bar.get_ylabel() == "probability"
    for axis in panels:
        labels = axis.get_xticklabels()
        names = [label.get_text() for label in labels]
        assert (names[0], names[-1]) == ("v1", "A1") and len(names) >= 5
        for name, slot, x in zip(names, axis.get_yticklabels(), axis.get_xticks(), strict=True):
            number = int(name[1:]) if name != "A1" else n_soft + 1
            assert int(slot.get_text()) == number == x + 0.5
        boxes = [label.get_window_extent() for label in labels]
        assert all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))
        boxes = [label.get_window_extent() for label in axis.get_yticklabels()]
        assert all(a.y0 > b.y1 for a, b in itertools.pairwise(boxes))


@pytest.mark.parametrize(
    ("losses", "scale"),
    [([0.6, 0.98], "linear"), ([2.0, 0.1], "log"), ([1.0, 0.0], "linear")],
)
def test_the_axis_of_the_loss_is_logarithmic_over_a_decade(tmp_path, losses, scale):
    for epoch, loss in enumerate(losses, start=1):
        append_event(tmp_path, "epoch", epoch=epoch, epochs=2, loss=loss, acc=50.0)
    figure = training_curves({"one": [tmp_path]}, "digits")
    assert figure.get_suptitle() == "digits"
    loss, accuracy = figure.axes
    assert (loss.get_yscale(), accuracy.get_yscale()) == (scale, "linear")
    assert (loss.get_ylabel(), accuracy.get_ylabel()) == ("training loss", "training accuracy, %")


ACCURACIES = {
    ("CoOp", "base"): {1: 80.0, 2: 82.0, 3: 84.0},
    ("CoOp_AnchorOPT", "base"): {1: 81.0, 2: 85.0, 4: 88.0},
    ("a control", "base"): {1: 70.0, 2: 71.0},
}
REFERENCES = {"CoOp": "", "CoOp_AnchorOPT": "CoOp", "a control": "CoOp_AnchorOPT"}


def table_of(accuracies, protocol="base2new"):
    rows = [
        {
            **{"method": method, "reference": REFERENCES.get(method, ""), "trainer": method},
            **{"group": "digits", "score": score, "seed": seed, "accuracy": accuracy},
            **{"shots": 16, "has_seeds": True, "MODEL.BACKBONE.NAME": "tiny"},
        }
        for (method, score), by_seed in accuracies.items()
        for seed, accuracy in by_seed.items()
    ]
    (table,) = tables(pd.DataFrame(rows), read_protocol(protocol))
    return table


def test_each_seed_is_a_point_and_the_same_seed_is_joined():
    figure = accuracies(table_of(ACCURACIES))
    (axis,) = figure.axes
    assert [label.get_text() for label in axis.get_yticklabels()] == [*REFERENCES]
    lines = [(line.get_color(), line.get_xydata()) for line in axis.lines]
    joined = [ends[:, 0].tolist() for color, ends in lines if color == "0.75"]
    assert joined == [[80.0, 81.0], [82.0, 85.0]], "not seed 3 and 4, and not the control"
    bottom, top = axis.get_ylim()
    assert bottom > top, "the first method is at the top"
    circles = [line.get_xdata() for line in axis.lines if line.get_markerfacecolor() == "none"]
    assert [[*x] for x in circles] == [[*by_seed.values()] for by_seed in ACCURACIES.values()]
    for place, (container, by_seed) in enumerate(
        zip(axis.containers, ACCURACIES.values(), strict=True)
    ):
        (whisker,) = container.lines[2]
        ((left, y), (right, _)) = whisker.get_segments()[0]
        assert round(y) == place
        values = [*by_seed.values()]
        assert (left + right) / 2 == pytest.approx(np.mean(values))
        assert (right - left) / 2 == pytest.approx(np.std(values, ddof=1))
    assert not axis.patches, "no bars, which would have to start at zero"


def test_no_two_rows_of_the_demo_share_a_colour():
    alone = {(name, "base"): {1: 60.0} for name in ("ZeroshotCLIP", "anchor prompt alone")}
    (axis,) = accuracies(table_of({**ACCURACIES, **alone})).axes
    colors = [to_rgba(container.lines[0].get_color()) for container in axis.containers]
    assert len({*colors}) == len(colors) == 5


@pytest.mark.parametrize("values", [(100.0, 100.0), (99.0, 100.0), (85.0, 100.0)])
def test_no_axis_goes_on_far_beyond_100_and_no_whisker_is_cut_off(values):
    (axis,) = accuracies(table_of({("CoOp", "base"): dict(enumerate(values))})).axes
    left, right = axis.get_xlim()
    end = max(100.0, np.mean(values) + np.std(values, ddof=1))
    assert left < min(values) and end < right <= end + (right - left) / 20


def test_few_shot_curves_have_the_seeds_and_name_the_shots():
    of_shots = {
        (method, shots): {seed: value + int(shots) for seed, value in by_seed.items()}
        for (method, _), by_seed in ACCURACIES.items()
        for shots in ("1", "16")
    }
    figure = few_shot_curves(table_of(of_shots, "few_shot"))
    (axis,) = figure.axes
    assert [label.get_text() for label in axis.get_xticklabels()] == ["1 shot", "16 shots"]
    circles = [line for line in axis.lines if line.get_markerfacecolor() == "none"]
    assert [[*line.get_ydata()] for line in circles] == [[*x.values()] for x in of_shots.values()]
    curves = [container.lines[0] for container in axis.containers]
    colors = [to_rgba(line.get_color()) for line in circles]
    assert colors == [to_rgba(curve.get_color()) for curve in curves for _ in range(2)]

"""Figures as files: all formats, vectors only, the same bytes again."""

from __future__ import annotations

import json
import re

import pytest
import torch

from anchoropt_plugin.experiments.figures import write_figure
from anchoropt_plugin.report.figures import FORMATS, position_matrices

N_EPOCHS = 7


@pytest.fixture
def folder(tmp_path):
    """Return the output folder of a run with a history of its position matrix."""
    generator = torch.Generator().manual_seed(0)
    matrices = [torch.randn(5, 5, generator=generator).softmax(-1) for _ in range(N_EPOCHS)]
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
    figure = position_matrices({"CoOp_AnchorOPT": folder})
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

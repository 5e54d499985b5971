"""A shortened demo from training to report."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pandas as pd
import pytest
import torch

from experiments import demo

SHORT = ["OPTIM.MAX_EPOCH", "3", "USE_CUDA", "False"]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Run the demo with one seed and three epochs; return its folder."""
    folder = tmp_path_factory.mktemp("demo")
    places = ["--root", str(folder / "data"), "--output-dir", str(folder / "out")]
    assert demo.main("", [*places, "--seeds", "1", "--jobs", "2", *SHORT]) == 0
    return folder / "out"


def test_the_table_has_the_methods_and_their_controls(page):
    table = pd.read_csv(page / "results.csv")
    assert list(dict.fromkeys(table["method"])) == [
        "ZeroshotCLIP",
        "CoOp",
        "CoOp_AnchorOPT",
        "anchor prompt alone",
        "CoOp_AnchorOPT, identity matrix",
        "CoOp, averaged with zero-shot on new",
    ]
    assert set(table.groupby("method")["score"].agg(" ".join)) == {"base new"}


def test_controls_are_not_bold(page):
    report = (page / "report.html").read_text()
    assert re.findall(r'<tr class="strong"><td>(.+?)</td>', report) == ["CoOp_AnchorOPT"]


def test_averaging_with_zero_shot_by_hand(page, monkeypatch):
    table = pd.read_csv(page / "results.csv").set_index(["method", "score"])
    base = table.loc[[(m, "base") for m in ("CoOp", demo.AVERAGED)], "correct"]
    assert base.iloc[0] == base.iloc[1]
    logits = {
        "CoOp": torch.tensor([[3.0, 0.0], [0.0, 1.0]]),
        "Zero": torch.tensor([[0.0, 4.0]] * 2),
    }

    def of(run):
        return logits[run.folder.name], torch.tensor([0, 1])

    class Run:
        def __init__(self, name):
            self.folder = Path(name)

    job = type("Job", (), {"runs": [Run("CoOp"), Run("Zero")]})()
    results = pd.DataFrame(
        {
            "method": ["CoOp", "ZeroshotCLIP"],
            "score": "new",
            "folder": ["CoOp", "Zero"],
            "reference": "",
            "does": "test",
            "correct": [2, 1],
            "accuracy": [100.0, 50.0],
        }
    )
    monkeypatch.setattr(demo, "logits_of", of)
    (row,) = demo.averaged_with_zero_shot([job], results).itertuples()
    assert (row.method, row.correct, row.accuracy) == (demo.AVERAGED, 1, 50.0)


def test_logits_of_a_run_give_its_own_accuracy(page):
    table = pd.read_csv(page / "results.csv")
    row = table[(table["method"] == "CoOp") & (table["score"] == "new")].iloc[0]
    argv = [
        *("--root", str(page.parent / "data"), "--output-dir", row["folder"], "--trainer", "CoOp"),
        *("--dataset-config-file", "configs/datasets/digits.yaml", "--seed", "1"),
        *("--config-file", "configs/trainers/CoOp/tiny.yaml", "--eval-only", "--load-epoch", "3"),
        *("--model-dir", row["folder"].replace("test_new", "train_base")),
        *("DATASET.SUBSAMPLE_CLASSES", "new", *SHORT),
    ]
    logits, labels = demo.logits_of(type("Run", (), {"argv": argv})())
    assert int((logits.argmax(-1) == labels).sum()) == row["correct"]


def test_the_page_needs_no_other_file(page):
    text = (page / "report.html").read_text()
    assert not re.findall(r"(?:src|href)=\"(?!data:)", text)
    images = re.findall(r"data:image/png;base64,([^\"]+)", text)
    assert [base64.b64decode(image)[:4] for image in images] == [b"\x89PNG"] * 3
    for method in pd.read_csv(page / "results.csv")["method"]:
        assert f"<td>{method}</td>" in text

"""A shortened demo from training to report."""

from __future__ import annotations

import base64
import contextlib
import io
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from anchoropt_plugin.experiments import demo, zero_shot_control
from anchoropt_plugin.experiments.checkout import CHECKOUT
from anchoropt_plugin.experiments.plan import plan
from anchoropt_plugin.experiments.zero_shot_control import averaged_with_zero_shot, name_of

SHORT = ["OPTIM.MAX_EPOCH", "3", "USE_CUDA", "False"]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Run the demo with one seed and three epochs; return its folder, and what it said."""
    folder = tmp_path_factory.mktemp("demo")
    places = ["--root", str(folder / "data"), "--output-dir", str(folder / "out")]
    words = ["--datasets", "digits", "--seeds", "1", "--jobs", "2"]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert demo.main("", [*places, *words, *SHORT]) == 0
    (folder / "out" / "said.txt").write_text(said.getvalue())
    return folder / "out"


def test_the_table_has_the_methods_and_their_controls(page):
    table = pd.read_csv(page / "results.csv")
    rows = list(dict.fromkeys(table["method"]))
    said = " ".join((page / "said.txt").read_text().split())
    assert f"Rows: {', '.join(rows)} CoOp with and" in said
    assert rows == [
        "ZeroshotCLIP",
        "CoOp",
        "CoOp_AnchorOPT",
        "anchor prompt alone",
        "CoOp, averaged with zero-shot on new",
    ]
    assert set(table.groupby("method")["score"].agg(" ".join)) == {"base new"}


def test_the_page_tells_the_orders_of_the_tokens(page):
    table = pd.read_csv(page / "results.csv")
    ours = table[(table["method"] == "CoOp_AnchorOPT") & (table["score"] == "base")]["order"].item()
    text = (page / "report.html").read_text()
    assert f"<li>digits, CoOp_AnchorOPT: {ours} (1 run)</li>" in text
    assert table[table["method"] == "CoOp"]["order"].isna().all()


def test_the_page_counts_runs_and_not_rows(page):
    n_runs = len([*page.rglob("results.json")])
    assert f'<p class="note">{n_runs} runs, which ' in (page / "report.html").read_text()
    table = pd.read_csv(page / "results.csv")
    assert n_runs < len(table), "averages with zero-shot are no runs"
    seconds = table.drop_duplicates("folder")["seconds"].sum()
    assert (
        f"{n_runs} runs, which took {seconds:.0f} s together" in (page / "report.html").read_text()
    )


def test_every_figure_is_there_in_three_formats(page):
    names = {path.stem for path in page.glob("*.png")}
    assert names == {"accuracy_digits", "training", "positions"}
    for kind in ("pdf", "svg"):
        assert {path.stem for path in page.glob(f"*.{kind}")} == names


def test_shapes_are_trained_for_twenty_epochs_and_with_more_seeds(tmp_path):
    places = ["--root", str(tmp_path / "data"), "--output-dir", str(tmp_path / "out")]
    plans = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "run_experiment", lambda *args: plans.append(args) or 0)
        assert demo.main("", places) == 0
    ((experiment, *_),) = plans
    jobs = plan(experiment.protocol, experiment.methods, tmp_path, tmp_path / "out", [])
    epochs = {(r.group, r.settings["OPTIM.MAX_EPOCH"]) for j in jobs for r in j.runs if r.trains}
    assert epochs == {("shapes", 20), ("digits", 50)}
    trained = [(run.group, run.seed) for job in jobs for run in job.runs if run.trains]
    seeds = {"shapes": [1, 2, 3, 4, 5, 6], "digits": [1, 2, 3]}
    assert sorted(trained) == sorted((g, seed) for g, of in seeds.items() for seed in of * 2)
    alone = [run for job in jobs for run in job.runs if run.method.name == "anchor prompt alone"]
    assert {(run.group, run.score, run.seed) for run in alone if run.reported} == {
        (group, score, 1) for group in seeds for score in ("base", "new")
    }


def test_given_seeds_are_those_of_both_data_sets(tmp_path, monkeypatch):
    plans = []
    monkeypatch.setattr(demo, "run_experiment", lambda *args: plans.append(args) or 0)
    assert demo.main("", ["--seeds", "4", "5"]) == 0
    protocol = plans[0][0].protocol
    assert [list(protocol.seeds_for(name)) for name in protocol.datasets] == [[4, 5], [4, 5]]


def test_averaging_with_zero_shot_by_hand(page, monkeypatch):
    table = pd.read_csv(page / "results.csv").set_index(["method", "score"])
    base = table.loc[[(m, "base") for m in ("CoOp", name_of("CoOp"))], "correct"]
    assert base.iloc[0] == base.iloc[1]
    logits = {
        "CoOp": torch.tensor([[3.0, 0.0], [0.0, 1.0]]),
        "Zero": torch.tensor([[0.0, 4.0]] * 2),
    }

    def of(run):
        return logits[run.folder.name].numpy(), np.array([0, 1])

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
            "group": "digits",
            "does": "test",
            "correct": [2, 1],
            "accuracy": [100.0, 50.0],
        }
    )
    monkeypatch.setattr(zero_shot_control, "_in_fork", of)
    (row,) = averaged_with_zero_shot([job], results, reference="other").itertuples()
    assert (row.method, row.correct, row.accuracy) == (name_of("CoOp"), 1, 50.0)
    assert row.reference == "other"


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
    logits, labels = zero_shot_control.logits_of(
        type("Run", (), {"argv": argv, "repository": CHECKOUT})()
    )
    assert int((logits.argmax(-1) == labels).sum()) == row["correct"]
    argv += ["TEST.SPLIT", "val"]
    _, of_validation = zero_shot_control.logits_of(
        type("Run", (), {"argv": argv, "repository": CHECKOUT})()
    )
    assert 0 < len(of_validation) < len(labels)


def test_the_page_needs_no_other_file(page):
    text = (page / "report.html").read_text()
    assert not re.findall(r"(?:src|href)=\"(?!data:)", text)
    images = re.findall(r"data:image/svg\+xml;base64,([^\"]+)", text)
    assert [b"<svg" in base64.b64decode(image)[:1000] for image in images] == [True] * 3
    for method in pd.read_csv(page / "results.csv")["method"]:
        assert f"<td>{method}</td>" in text

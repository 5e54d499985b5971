"""Experiments with a fork of CoOp: its train.py is unchanged, only the package is installed."""

from __future__ import annotations

import contextlib
import json
import pickle
import re
import shutil

import pandas as pd
import pytest

from anchoropt_plugin import UserError
from anchoropt_plugin.experiments import compare
from anchoropt_plugin.experiments import own_repository as own_repository_module
from anchoropt_plugin.experiments.checkout import CHECKOUT
from anchoropt_plugin.experiments.logs import results_in
from anchoropt_plugin.experiments.own_repository import own_repository
from anchoropt_plugin.files.predictions import PREDICTIONS

from .fork_of_coop import command, write_fork

WORDS = ["--repository", "fork", "--config", "configs/my.yaml", "--root", "fork/data"]
WORDS += ["--shots", "2", "--seeds", "1"]
COMPARE = ["compare", *WORDS, "--hosts", "MyCoOp"]
DOTS = ["--dataset-config", "dots.yaml"]


def one_line(done):
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stdout + done.stderr
    return done.stderr


def files_of(folder):
    ours = {path for path in folder.rglob("*") if "__pycache__" not in path.parts}
    return {path: path.read_bytes() for path in ours if path.is_file()}


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A folder with the fork, and what one command made of it in ``out``."""
    folder = tmp_path_factory.mktemp("own")
    fork = write_fork(folder / "fork")
    before = files_of(fork)
    done = command(folder, *COMPARE, *DOTS, "--output-dir", "out")
    assert done.returncode == 0, done.stdout + done.stderr
    assert files_of(fork) == before
    (folder / "said.txt").write_text(done.stdout)
    return folder


def run_folder(folder, trainer, part):
    return folder / f"out/base2new/{part}/dots/shots_2/{trainer}/my/seed1"


def test_one_command_makes_the_table_and_the_report(compared):
    rows = pd.read_csv(compared / "out/results.csv").set_index(["method", "score"])
    assert sorted(rows.index) == [
        (method, score) for method in ("MyCoOp", "MyCoOp_AnchorOPT") for score in ("base", "new")
    ]
    for (method, score), row in rows.iterrows():
        part = {"base": "train_base", "new": "test_new"}[score]
        results = json.loads((run_folder(compared, method, part) / "results.json").read_text())
        assert row["accuracy"] == results["accuracy"] and row["total"] == results["total"] == 10
        assert row["TRAINER.MYCOOP.N_CTX"] == 4 and row["DATASET.NUM_SHOTS"] == 2
        assert row["SEED"] == 1 and row["OPTIM.MAX_EPOCH"] == 2 and row["seconds"] > 0
    said = (compared / "said.txt").read_text()
    assert "4 runs, 0 of them finished" in said and "MyCoOp_AnchorOPT" in said
    page = (compared / "out/report.html").read_text()
    assert "<svg" in page or "data:image/svg" in page
    assert "python -m anchoropt_plugin compare --repository fork" in page


@pytest.mark.parametrize("trainer", ["MyCoOp", "MyCoOp_AnchorOPT"])
def test_a_run_is_that_of_the_command_run(compared, tmp_path, trainer):
    given = run_folder(compared, trainer, "train_base")
    words = json.loads((given / "given.json").read_text())
    fork = compared / "fork"
    pairs = [word for pair in words["settings"] for word in pair]
    done = command(
        fork,
        *("run", "train.py", *words["words"], "--root", "data", "--output-dir", tmp_path),
        *("--config-file", "configs/my.yaml", "--dataset-config-file", "dots.yaml", *pairs),
        ANCHOROPT_CACHE=str(tmp_path / "anchors"),
    )
    shutil.rmtree(fork / ".installed")
    assert done.returncode == 0, done.stderr
    ours, theirs = (path / PREDICTIONS for path in (given, tmp_path))
    assert ours.read_text().replace(str(fork), "") == theirs.read_text().replace(str(fork), "")


def test_finished_runs_are_found_again_and_those_of_other_settings_are_not(compared):
    runs = list((compared / "out").rglob("run.json"))
    then = {path: path.stat().st_mtime_ns for path in runs}
    old, new = compared / "out/accuracy_other_data.png", compared / "out/accuracy_dots.png"
    old.touch()
    done = command(compared, *COMPARE, *DOTS, "--output-dir", "out")
    assert done.returncode == 0 and "4 runs, 4 of them finished" in done.stdout
    assert new.exists() and not old.exists(), "a figure of other tables"
    assert {path: path.stat().st_mtime_ns for path in runs} == then and len(runs) == 4
    other = command(compared, *COMPARE, *DOTS, "--output-dir", "out", "TRAINER.MYCOOP.N_CTX", "2")
    assert "other settings: TRAINER.MYCOOP.N_CTX was not given, now 2: give" in one_line(other)
    config = compared / "fork/configs/my.yaml"
    text = config.read_text()
    config.write_text(text.replace("MAX_EPOCH: 2", "MAX_EPOCH: 3"))
    assert "holds a run with other settings: OPTIM.MAX_EPOCH was 2, now 3: give" in one_line(
        command(compared, *COMPARE, *DOTS, "--output-dir", "out")
    )
    config.write_text(f"# a comment is no setting\n{text}")
    done = command(compared, *COMPARE, *DOTS, "--output-dir", "out")
    assert "4 runs, 4 of them finished" in done.stdout
    config.write_text(text)


def test_results_of_a_dassl_that_only_prints_are_read_from_the_log(compared):
    repository = own_repository(compared / "fork", [])
    for part, training in (("train_base", True), ("test_new", False)):
        folder = run_folder(compared, "MyCoOp_AnchorOPT", part)
        written, _ = repository.results(folder, training)
        hidden = (folder / "results.json").rename(folder / "hidden.json")
        logged, path = repository.results(folder, training)
        hidden.rename(folder / "results.json")
        assert path.name.startswith("log.txt")
        assert (logged["total"], logged["correct"]) == (written["total"], written["correct"])
        assert logged["accuracy"] == pytest.approx(written["accuracy"])
        assert logged["macro_f1"] == pytest.approx(written["macro_f1"], abs=0.05)


@pytest.mark.parametrize(
    ("part", "signal"), [("train_base", "Finish training"), ("test_new", "=> result")]
)
def test_the_public_log_parser_runs(compared, part, signal):
    folder = run_folder(compared, "MyCoOp", part)
    results = json.loads((folder / "results.json").read_text())
    done = command(compared, "run", "fork/parse_test_res.py", folder.parent, signal)
    accuracy = f"accuracy: {results['accuracy']:.1f}0%. "
    assert (done.returncode, done.stdout) == (0, f"file: {folder}/log.txt. {accuracy}\n")


RESULT = "=> result\n* total: 2,000\n* correct: 1,537\n* accuracy: 76.8%\n* macro_f1: 70.1%\n"


def test_a_validation_is_not_the_result_of_a_training():
    assert results_in(RESULT, training=True) == {}
    assert results_in(f"{RESULT}Finish training\n", training=True) == {}
    found = results_in(f"{RESULT}Finish training\n{RESULT.replace('537', '540')}", training=True)
    assert found == {"total": 2000, "correct": 1540, "accuracy": 77.0, "macro_f1": 70.1}
    assert results_in(RESULT, training=False)["accuracy"] == 76.85


def test_ablate_varies_a_key_of_the_repository(compared):
    words = ["ablate", *WORDS, "--host", "MyCoOp", *DOTS, "--grid", "TRAINER.MYCOOP.N_CTX=2,4"]
    words += ["--output-dir", "ablated", "--protocol", "few_shot"]
    done = command(compared, *words, "TRAINER.ANCHOROPT.PRESET", "reference")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = pd.read_csv(compared / "ablated/results.csv").set_index("method")
    assert list(rows.index) == ["MyCoOp", "MyCoOp_AnchorOPT", "N_CTX=2"]
    assert list(rows["TRAINER.MYCOOP.N_CTX"]) == [4, 4, 2]
    row = "Default values, in the row MyCoOp_AnchorOPT and in each changed row that names no other "
    says = f"{row}value: TRAINER.MYCOOP.N_CTX=4."
    assert " ".join(done.stdout.split()).count(says) == 2, "in the plan and below the tables"
    assert says in (compared / "ablated/report.html").read_text()
    in_force = rows["TRAINER.ANCHOROPT.POSITION"]  # what the preset sets
    assert list(in_force) == ["sinkhorn", "gumbel", "gumbel"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([*DOTS, "--repository", "nowhere"], r"nowhere has no train\.py"),
        ([*DOTS, "--repository", str(CHECKOUT.folder)], "is a clone of anchoropt-plugin: leave"),
        (["--dataset-config", "spots.yaml"], r"there is no data set file spots\.yaml, here or in"),
        (["--datasets", "shape"], r"unknown data set 'shape' \(did you mean 'shapes'\?\)"),
        ([*DOTS, "--config", "your.yaml"], r"there is no config file your\.yaml, here or in"),
        ([*DOTS, "--shots", "1", "0"], "--shots 0: give 1 or more, or -1 for all images"),
        ([*DOTS, "--seeds", "1", "-1"], "--seeds -1: a negative seed fixes no random numbers"),
        ([*DOTS, "--preset", "embedded"], "--preset is for the trainers of anchoropt-plugin"),
    ],
)
def test_what_is_not_there_is_refused(tmp_path, monkeypatch, words, says):
    write_fork(tmp_path / "fork")
    monkeypatch.chdir(tmp_path)
    before = {*tmp_path.rglob("*")}
    with pytest.raises(UserError, match=says):
        compare.main("", [*COMPARE[1:], "--output-dir", "refused", *words])
    assert {*tmp_path.rglob("*")} == before


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([*DOTS, "--hosts", "YourCoOp"], "before any run: YourCoOp_AnchorOPT, dots base"),
        (
            [*DOTS, "--hosts", "MyCoOp_AnchorOPT"],
            "MyCoOp_AnchorOPT has AnchorOPT already: give the",
        ),
        ([*DOTS, "--seeds", "0"], "train.py makes SEED -1 of 0, so the runs would not"),
        ([*DOTS, "TRAINER.MYCOOP.N_CONTEXT", "2"], "error: command line: unknown config key"),
    ],
)
def test_refusals_are_one_line_and_nothing_is_written(compared, words, says):
    said = one_line(command(compared, *COMPARE, "--output-dir", "refused", *words))
    assert says in said, said
    assert not (compared / "refused").exists()


@pytest.mark.parametrize(
    ("taken", "says"),
    [
        ({}, ""),
        ({"SEED": 1}, "makes SEED 1 of 97"),
        ({"DATASET.NUM_SHOTS": 16}, "makes DATASET.NUM_SHOTS 16 of 4"),
        ({"OPTIM.LR": 0.1}, "makes OPTIM.LR 0.1 of 1e-3"),
        ({"INPUT.SIZE": [224, 224]}, r"makes INPUT.SIZE \[224, 224\] of \(32,32\)"),
        ({"TRAINER.MY.WORDS": "a"}, "makes TRAINER.MY.WORDS a of 3"),
    ],
)
def test_a_train_py_that_does_not_take_what_it_is_given_is_refused(
    tmp_path, monkeypatch, taken, says
):
    words = {"OPTIM.LR": "1e-3", "DATASET.NUM_SHOTS": "4", "INPUT.SIZE": "(32,32)"}
    words |= {"TRAINER.MY.WORDS": "3", "TRAINER.MY.INIT": "", "DATASET.SUBSAMPLE_CLASSES": "base"}
    found = {"OPTIM.LR": 0.001, "DATASET.NUM_SHOTS": 4, "INPUT.SIZE": [32, 32], "SEED": 97}
    found |= {"TRAINER.MY.WORDS": "3", "TRAINER.MY.INIT": "", "DATASET.SUBSAMPLE_CLASSES": "base"}
    monkeypatch.setattr(own_repository_module, "in_fork", lambda *_: {**found, **taken})
    repository = own_repository(write_fork(tmp_path / "fork"), [])
    pairs = [word for pair in words.items() for word in pair]
    refused = pytest.raises(UserError, match=says) if says else contextlib.nullcontext()
    with refused:
        assert repository.settings(["--seed", "2"], pairs) == {**found, "SEED": 2}


def test_image_folder_shares_its_root_with_no_other_data_set(compared):
    for name in ("cat", "dog"):
        (compared / "imgs" / name).mkdir(parents=True)
        (compared / "imgs" / name / "1.png").touch()
    for more in ([], ["--dry-run"]):
        words = [*COMPARE, "--root", "imgs", "--datasets", "digits", "image_folder", *more]
        said = one_line(command(compared, *words, "--output-dir", "refused"))
        assert "imgs is the image folder of ImageFolder, so Digits cannot be in it: run" in said
    assert sorted(path.name for path in (compared / "imgs").iterdir()) == ["cat", "dog"]
    assert not (compared / "refused").exists()


def test_what_is_missing_is_told_before_any_run(compared):
    (compared / "fork/data/black.png").rename(compared / "black.png")
    lost = command(compared, *COMPARE, *DOTS, "--output-dir", "refused")
    (compared / "black.png").rename(compared / "fork/data/black.png")
    assert "before any run: MyCoOp, dots new, seed 1: test" in one_line(lost)
    assert "black.png" in lost.stderr
    words = [*DOTS, "TRAINER.ANCHOROPT.DESCRIPTIONS", "nowhere.json"]
    said = one_line(command(compared, *COMPARE, "--output-dir", "refused", *words))
    assert "before any run: MyCoOp_AnchorOPT, dots base" in said and "nowhere.json" in said
    words = [*DOTS, "MODEL.BACKBONE.NAME", "mine"]
    said = one_line(command(compared, *COMPARE, "--output-dir", "refused", *words))
    assert "loader does not know the CLIP 'mine': let it return anchoropt_plugin.load_clip" in said
    assert not (compared / "refused").exists()


def test_a_dry_run_times_the_parts_of_each_kind_without_slurm(compared):
    words = [*COMPARE, "--datasets", "digits", "--executor", "slurm", "--gpus", "1", "--dry-run"]
    done = command(compared, *words, "--seeds", "1", "2", "--output-dir", "dry", PATH="/usr/bin")
    assert done.returncode == 0, done.stderr
    kinds = [line for line in done.stdout.splitlines() if line.startswith("  MyCoOp")]
    assert len(kinds) == 4
    (learning,) = (line for line in kinds if "MyCoOp_AnchorOPT, digits base: train" in line)
    name, n, build, stage_one, training, test, _ = re.split("  +", learning.strip())
    assert (name, n) == ("MyCoOp_AnchorOPT, digits base: train, 2 shots", "2")
    assert float(build) > 0 and min(map(float, (stage_one, training, test))) >= 0  # in tenths
    assert not (compared / "dry").exists()


def test_a_job_goes_to_another_machine_with_its_repository(compared):
    repository = own_repository(compared / "fork", ["dots.yaml"])
    assert pickle.loads(pickle.dumps(repository)) == repository
    assert repository.dataset_config("dots") == compared / "fork/dots.yaml"

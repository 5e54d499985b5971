"""A checkpoint is tested with the settings it was trained with, or refused in one line."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

import train
from anchoropt_plugin import UserError, load_predictor
from anchoropt_plugin.config.record import final_epoch
from anchoropt_plugin.encoders.clip_models import load_clip
from anchoropt_plugin.report.page import write_page
from trainers import host, prompted_clip

from .runs import ROOT, command, without_its_run

HOSTS = ["CoOp", "CoOp_AnchorOPT", "MaPLe", "DePT", "DePT_AnchorOPT"]


@pytest.fixture(scope="module")
def runs(root, tmp_path_factory):
    """Return the output folders of short runs on the base classes, by trainer."""
    folder = tmp_path_factory.mktemp("runs")
    for trainer in HOSTS:
        assert train.main(command(root, folder / trainer, trainer)) == 0
    return folder


def evaluated(runs, root, out, trainer, keys=(), classes="new"):
    flags = ["--eval-only", "--model-dir", str(runs / trainer), "--load-epoch", "2"]
    return train.main(command(root, out, trainer, classes, flags, keys))


@pytest.mark.parametrize(
    ("trainer", "keys", "message"),
    [
        ("CoOp", ["TRAINER.COOP.CLASS_TOKEN_POSITION", "front"], "was 'end', now 'front'"),
        ("CoOp", ["MODEL.BACKBONE.NAME", "RN50"], "was 'tiny', now 'RN50'"),
        ("CoOp", ["INPUT.PIXEL_MEAN", "[0, 0, 0]"], "now [0, 0, 0]"),
        ("CoOp", ["INPUT.INTERPOLATION", "nearest"], "now 'nearest'"),
        ("CoOp", ["INPUT.TRANSFORMS", "['random_flip']"], "was ['normalize'], now []"),
        ("CoOp_AnchorOPT", ["INPUT.PIXEL_STD", "[1, 1, 1]"], "now [1, 1, 1]"),
        ("MaPLe", ["TRAINER.MAPLE.CTX_INIT", "an image of a"], "now 'an image of a'"),
        ("DePT", ["TRAINER.LINEAR_PROBE.WEIGHT", "0.1"], "was 0.7, now 0.1"),
        ("DePT_AnchorOPT", ["TRAINER.LINEAR_PROBE.TEST_TIME_FUSION", "False"], "now False"),
    ],
)
def test_other_settings_are_refused(
    runs, root, tmp_path, capsys, monkeypatch, trainer, keys, message
):
    monkeypatch.setattr(prompted_clip, "load_backbone", lambda cfg: load_clip("tiny"))
    assert evaluated(runs, root, tmp_path, trainer, keys) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{runs / trainer} was trained with other settings: {keys[0]} was " in line
    assert message in line and "it was trained with" in line
    assert not (tmp_path / "log.txt").exists()


def test_a_model_of_another_trainer_is_refused(runs, root, tmp_path, capsys):
    """Where the checkpoint would be loaded, as by hosts that load what fits."""
    shutil.copytree(runs / "CoOp", tmp_path / "runs/CoOp")
    record = tmp_path / "runs/CoOp/config.yaml"
    text = record.read_text()
    record.write_text(text.replace("NAME: CoOp\n", "NAME: MyCoOp\n"))
    assert "NAME: CoOp\n" in text
    without_its_run(tmp_path / "runs")
    assert evaluated(tmp_path / "runs", root, tmp_path / "out", "CoOp") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "was trained with MyCoOp, this run has CoOp: give --trainer MyCoOp" in line


def test_a_folder_without_the_files_of_this_trainer_is_named_after_its_own(
    runs, root, tmp_path, capsys
):
    flags = ["--eval-only", "--model-dir", str(runs / "CoOp")]
    assert train.main(command(root, tmp_path, "MaPLe", "new", flags)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "was trained with CoOp, this run has MaPLe: give --trainer CoOp" in line


def test_settings_of_training_alone_may_differ(runs, root, tmp_path):
    keys = ["OPTIM.LR", "1", "DATASET.NUM_SHOTS", "2", "INPUT.TRANSFORMS", "['normalize']"]
    assert evaluated(runs, root, tmp_path / "a", "CoOp", [*keys, "TRAINER.MAPLE.N_CTX", "4"]) == 0
    (runs / "CoOp" / "config.yaml").rename(tmp_path / "config.yaml")  # another repository's run
    assert evaluated(runs, root, tmp_path / "b", "CoOp", ["INPUT.INTERPOLATION", "nearest"]) == 0
    (tmp_path / "config.yaml").rename(runs / "CoOp" / "config.yaml")


def test_new_classes_that_were_trained_are_told(runs, root, tmp_path, capsys):
    copy = tmp_path / "runs"
    shutil.copytree(runs / "CoOp", copy / "CoOp")
    assert evaluated(copy, root, tmp_path / "a", "CoOp") == 0
    assert "classes were trained" not in capsys.readouterr().out
    names = json.loads((copy / "CoOp/classes.json").read_text())
    truths = {line.split(",")[1] for line in (tmp_path / "a/predictions.csv").read_text().split()}
    new = sorted(truths - {"truth"})
    (copy / "CoOp/classes.json").write_text(json.dumps([*names[:-1], new[0]]))
    without_its_run(copy)
    assert evaluated(copy, root, tmp_path / "b", "CoOp") == 0
    assert f"Note: 1 of these {len(new)} new classes were trained" in capsys.readouterr().out


def test_an_interrupted_training_is_told(runs, tmp_path, caplog):
    folder = tmp_path / "run"
    shutil.copytree(runs / "CoOp", folder)
    assert final_epoch(folder, "prompt_learner") == 2 and not caplog.text
    record = folder / "config.yaml"
    record.write_text(record.read_text().replace("MAX_EPOCH: 2", "MAX_EPOCH: 7"))
    assert final_epoch(folder, "prompt_learner") == 2
    assert f"{folder}: the training stopped after epoch 2 of 7" in caplog.text


def test_a_report_has_the_settings_of_its_test(runs, root, tmp_path):
    shutil.copytree(runs / "CoOp_AnchorOPT", tmp_path / "CoOp_AnchorOPT")
    assert evaluated(tmp_path, root, tmp_path / "CoOp_AnchorOPT", "CoOp_AnchorOPT") == 0
    text = write_page(tmp_path / "CoOp_AnchorOPT").read_text()
    assert "CoOp_AnchorOPT, tiny" in text and "classes: new" in text


# ---------------------------------------------------------------------- contexts of single classes
CSC = ["TRAINER.COOP.CSC", "True"]


@pytest.fixture(scope="module", params=["CoOp", "CoOp_AnchorOPT"])
def with_csc(request, root, tmp_path_factory):
    """Return a trainer, and the output folder of its run on the base classes, with CSC."""
    out = tmp_path_factory.mktemp("csc")
    assert train.main(command(root, out, request.param, keys=CSC)) == 0
    return request.param, out


@pytest.mark.parametrize("classes", ["new", "all"])
def test_contexts_of_single_classes_fit_no_others(with_csc, root, tmp_path, capsys, classes):
    trainer, out = with_csc
    flags = ["--eval-only", "--model-dir", str(out), "--load-epoch", "2"]
    same = command(root, tmp_path / "same", trainer, "base", flags, CSC)
    assert train.main(same) == 0
    capsys.readouterr()
    assert train.main(command(root, tmp_path / "other", trainer, classes, flags, CSC)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "one context for each of 5 other classes (CSC True)" in line
    assert not (tmp_path / "other" / "log.txt").exists()
    started = ["MODEL.INIT_WEIGHTS", str(out / "prompt_learner" / "model.pth.tar-2"), *CSC]
    assert train.main(command(root, tmp_path / "init", trainer, classes, keys=started)) == 2
    assert "one context for each of 5 other classes (CSC True)" in capsys.readouterr().err
    there = load_predictor(out).classes
    for names in (["cat", "dog", "fox", "owl", "emu"], there[::-1], there[:2]):
        with pytest.raises(UserError, match=rf"classes.json: {', '.join(there)}$"):
            load_predictor(out, names)
    assert load_predictor(out, there).classes == there


# ---------------------------------------------------------------------- initial weights
@pytest.mark.parametrize(
    ("trainer", "keys", "message"),
    [
        ("MaPLe", [], "nothing in {file} fits the model by name and size"),
        ("CoOp_AnchorOPT", ["TRAINER.COOP.N_CTX", "3"], "{file} does not fit: ctx is (4, 128)"),
    ],
)
def test_initial_weights_that_do_not_fit(runs, root, tmp_path, capsys, trainer, keys, message):
    file = runs / "CoOp/prompt_learner/model.pth.tar-2"
    keys = ["MODEL.INIT_WEIGHTS", str(file), *keys]
    assert train.main(command(root, tmp_path, trainer, keys=keys)) == 2
    assert message.format(file=file) in capsys.readouterr().err
    assert not (tmp_path / "log.txt").exists()


# ---------------------------------------------------------------------- the epoch
@pytest.mark.parametrize("final", ["last_step", "best_val"])
def test_a_test_and_predict_take_the_epoch_that_the_run_tests(
    runs, root, tmp_path, final, monkeypatch
):
    out = shutil.copytree(runs / "CoOp", tmp_path / "run")
    without_its_run(out)
    best = torch.load(out / "prompt_learner/model.pth.tar-2", weights_only=False)
    torch.save({**best, "epoch": 1}, out / "prompt_learner/model-best.pth.tar")
    record = out / "config.yaml"
    record.write_text(record.read_text().replace("FINAL_MODEL: last_step", f"FINAL_MODEL: {final}"))
    loaded = []
    of_file = host.load_checkpoint
    monkeypatch.setattr(host, "load_checkpoint", lambda path: loaded.append(path) or of_file(path))
    flags = ["--eval-only", "--model-dir", str(out)]
    assert train.main(command(root, tmp_path / "out", "CoOp", flags=flags)) == 0
    load_predictor(out)
    name = "model-best.pth.tar" if final == "best_val" else "model.pth.tar-2"
    assert loaded == [str(out / "prompt_learner" / name)] * 2


# ---------------------------------------------------------------------- files in the home folder
def test_files_in_the_home_folder(runs, root, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copy(ROOT / "configs/descriptions/digits.json", tmp_path / "digits.json")
    shutil.copytree(runs / "CoOp", tmp_path / "run")
    file = tmp_path / "data.yaml"
    file.write_text(
        "DATASET: {NAME: Digits}\nTRAINER: {ANCHOROPT: {DESCRIPTIONS: ~/digits.json}}\n"
        "MODEL: {INIT_WEIGHTS: ~/run/prompt_learner/model.pth.tar-2}"
    )
    words = command(root, tmp_path / "out", "CoOp_AnchorOPT")
    words[words.index("--dataset-config-file") + 1] = str(file)
    assert train.main(words) == 0
    log = (tmp_path / "out/log.txt").read_text()
    assert "Loaded pretrained weights from" in log and "templates" not in log
    assert len(load_predictor("~/run").classes) == 5

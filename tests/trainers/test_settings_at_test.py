"""A checkpoint is tested with the settings it was trained with, or refused in one line."""

from __future__ import annotations

import pytest

import train
from anchoropt_plugin.encoders.clip_models import load_clip
from trainers import prompted_clip

from .runs import command

HOSTS = ["CoOp", "CoOp_AnchorOPT", "MaPLe"]


@pytest.fixture(scope="module")
def runs(root, tmp_path_factory):
    """Return the output folders of short runs on the base classes, by trainer."""
    folder = tmp_path_factory.mktemp("runs")
    for host in HOSTS:
        assert train.main(command(root, folder / host, host)) == 0
    return folder


def evaluated(runs, root, out, host, keys=(), classes="new"):
    flags = ["--eval-only", "--model-dir", str(runs / host), "--load-epoch", "2"]
    return train.main(command(root, out, host, classes, flags, keys))


@pytest.mark.parametrize(
    ("host", "keys", "message"),
    [
        ("CoOp", ["TRAINER.COOP.CLASS_TOKEN_POSITION", "front"], "was 'end', now 'front'"),
        ("CoOp", ["MODEL.BACKBONE.NAME", "RN50"], "was 'tiny', now 'RN50'"),
        ("CoOp", ["INPUT.PIXEL_MEAN", "[0, 0, 0]"], "now [0, 0, 0]"),
        ("CoOp", ["INPUT.INTERPOLATION", "nearest"], "now 'nearest'"),
        ("CoOp", ["INPUT.TRANSFORMS", "['random_flip']"], "was ['normalize'], now []"),
        ("CoOp_AnchorOPT", ["INPUT.PIXEL_STD", "[1, 1, 1]"], "now [1, 1, 1]"),
        ("MaPLe", ["TRAINER.MAPLE.CTX_INIT", "a picture of a"], "now 'a picture of a'"),
    ],
)
def test_other_settings_are_refused(runs, root, tmp_path, capsys, monkeypatch, host, keys, message):
    monkeypatch.setattr(prompted_clip, "load_clip", lambda name: load_clip("tiny"))
    assert evaluated(runs, root, tmp_path, host, keys) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{runs / host} was trained with other settings: {keys[0]} was " in line
    assert message in line and "it was trained with" in line
    assert not (tmp_path / "log.txt").exists()


def test_settings_of_training_alone_may_differ(runs, root, tmp_path):
    keys = ["OPTIM.LR", "1", "DATASET.NUM_SHOTS", "2", "INPUT.TRANSFORMS", "['normalize']"]
    assert evaluated(runs, root, tmp_path / "a", "CoOp", [*keys, "TRAINER.MAPLE.N_CTX", "4"]) == 0
    (runs / "CoOp" / "config.yaml").rename(tmp_path / "config.yaml")  # another repository's run
    assert evaluated(runs, root, tmp_path / "b", "CoOp", ["INPUT.INTERPOLATION", "nearest"]) == 0
    (tmp_path / "config.yaml").rename(runs / "CoOp" / "config.yaml")

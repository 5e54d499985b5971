"""Runs of train.py over small public data sets: descriptions, halves, one's prompt on another."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import train
from tests.small_datasets import write_small

CONFIGS = Path(__file__).parents[1] / "configs"
SHORT = ["OPTIM.MAX_EPOCH", "1", "TRAINER.COOP.N_CTX", "2", "DATASET.NUM_SHOTS", "4"]
SHORT += ["TRAINER.ANCHOROPT.ANCHOR_EPOCHS", "2", "TRAINER.ANCHOROPT.ANCHOR_LEN", "1"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for name in ("ImageNet", "ImageNetV2", "ImageNetA", "UCF101"):
        write_small(root, name)
    return root


def run(root, out, data_set, *flags, keys=()):
    config, method = CONFIGS / f"datasets/{data_set}.yaml", CONFIGS / "trainers/CoOp/tiny.yaml"
    arguments = ["--root", root, "--output-dir", out, "--trainer", "CoOp_AnchorOPT", "--seed", "1"]
    arguments += ["--dataset-config-file", config, "--config-file", method, *flags]
    return train.main([str(x) for x in (*arguments, *SHORT, *keys)])


def test_without_descriptions_templates_stand_in_and_the_log_says_so(root, tmp_path):
    assert run(root, tmp_path, "ucf101", keys=["DATASET.SUBSAMPLE_CLASSES", "new"]) == 0
    log = (tmp_path / "log.txt").read_text()
    assert re.search("Stage 1: .*templates stand in", log)
    assert "SUBSAMPLE NEW CLASSES!" in log


def test_descriptions_of_other_spelling_are_used(root, tmp_path, capsys):
    described = {"apply eye makeup": ["one"], "ARCHERY": ["two"], "Tai_chi": ["three"]}
    file = tmp_path / "ucf.json"
    file.write_text(json.dumps(described))
    keys = ["TRAINER.ANCHOROPT.DESCRIPTIONS", str(file)]
    assert run(root, tmp_path / "a", "ucf101", keys=keys) == 2
    assert "no description of 1 classes (Yo_Yo)" in capsys.readouterr().err
    file.write_text(json.dumps(described | {"yo yo": ["four"]}))
    assert run(root, tmp_path / "b", "ucf101", keys=keys) == 0
    assert "templates" not in (tmp_path / "b" / "log.txt").read_text()


def test_a_prompt_of_imagenet_is_tested_on_other_data_sets(root, tmp_path):
    assert run(root, tmp_path / "imagenet", "imagenet") == 0
    flags = ["--eval-only", "--model-dir", tmp_path / "imagenet", "--load-epoch", "1"]
    for other, total in (("imagenetv2", 16), ("imagenet_a", 12), ("ucf101", 16)):
        assert run(root, tmp_path / other, other, *flags) == 0
        assert f"* total: {total}" in (tmp_path / other / "log.txt").read_text()

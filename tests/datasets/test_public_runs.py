"""Runs of train.py on small public data sets: descriptions, halves, transfer between data sets."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import train
from anchoropt_plugin import load_predictor
from anchoropt_plugin.__main__ import main
from tests.datasets.small_datasets import write_small

CONFIGS = Path(__file__).parents[2] / "configs"
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


def test_without_descriptions_the_log_says_that_templates_are_used(root, tmp_path):
    assert run(root, tmp_path, "ucf101", keys=["DATASET.SUBSAMPLE_CLASSES", "new"]) == 0
    log = (tmp_path / "log.txt").read_text()
    assert re.search("Stage 1: .*templates are used", log)
    assert "SUBSAMPLE NEW CLASSES!" in log


def test_descriptions_of_other_spelling_are_used(root, tmp_path, capsys):
    described = {"apply eye makeup": ["one"], "ARCHERY": ["two"], "Tai_chi": ["three"]}
    file = tmp_path / "ucf.json"
    file.write_text(json.dumps(described))
    keys = ["TRAINER.ANCHOROPT.DESCRIPTIONS", str(file)]
    assert run(root, tmp_path / "a", "ucf101", keys=keys) == 2
    assert "no description of 1 of 4 classes (Yo_Yo)" in capsys.readouterr().err
    file.write_text(json.dumps(described | {"yo yo": ["four"]}))
    assert run(root, tmp_path / "b", "ucf101", keys=keys) == 0
    assert "templates" not in (tmp_path / "b" / "log.txt").read_text()


@pytest.mark.parametrize("part", ["all", "base"])
def test_class_names_that_imagenet_has_twice(part, tmp_path, capsys):
    write_small(tmp_path, "ImageNet")
    names = tmp_path / "imagenet" / "classnames.txt"
    lines = names.read_text().splitlines()
    names.write_text("".join(f"{line.partition(' ')[0]} crane\n" for line in lines[:2]))
    with names.open("a") as file:
        file.write("".join(f"{line}\n" for line in lines[2:]))
    keys = ["DATASET.SUBSAMPLE_CLASSES", part, "TEST.PER_CLASS_RESULT", "True"]
    assert run(tmp_path, tmp_path / "out", "imagenet", keys=keys) == 0
    flags = ["--eval-only", "--model-dir", tmp_path / "out", "--load-epoch", "1"]
    assert run(tmp_path, tmp_path / "new", "imagenet", *flags, keys=[*keys[:1], "new"]) == 0
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "* class: 0 (crane)" in log and "* class: 1 (crane)" in log

    predictor = load_predictor(tmp_path / "out")
    assert predictor.classes[:2] == ("crane", "crane")
    image = tmp_path / "imagenet/images/val/n01443537/val_00000002.JPEG"
    probabilities = predictor.probabilities([image])[0].tolist()
    answer = predictor(image)
    assert answer["crane"] == pytest.approx(sum(probabilities[:2]))
    assert sum(answer.values()) == pytest.approx(1) and len(answer) == len(probabilities) - 1
    assert list(answer.values()) == sorted(answer.values(), reverse=True)
    capsys.readouterr()
    assert main(["predict", "--model-dir", str(tmp_path / "out"), str(image)]) == 0
    printed = re.findall(r"^ +([\d.]+) %  (.+)$", capsys.readouterr().out, re.MULTILINE)
    assert printed == [(f"{100 * p:.1f}", name) for name, p in answer.items()]


def test_a_prompt_of_imagenet_is_tested_on_other_data_sets(root, tmp_path):
    assert run(root, tmp_path / "imagenet", "imagenet") == 0
    flags = ["--eval-only", "--model-dir", tmp_path / "imagenet", "--load-epoch", "1"]
    for other, total in (("imagenetv2", 16), ("imagenet_a", 12), ("ucf101", 16)):
        assert run(root, tmp_path / other, other, *flags) == 0
        assert f"* total: {total}" in (tmp_path / other / "log.txt").read_text()

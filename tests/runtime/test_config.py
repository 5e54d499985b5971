"""Merging into the configuration: types that are taken, and errors that help."""

from __future__ import annotations

import pytest
from yacs.config import CfgNode

from anchoropt_plugin import UserError
from dassl.config import clean_cfg, get_cfg_default


@pytest.fixture
def cfg():
    return get_cfg_default()


def merge_yaml(cfg, tmp_path, text):
    path = tmp_path / "method.yaml"
    path.write_text(text)
    cfg.merge_from_file(str(path))


def test_each_call_returns_a_tree_of_its_own(cfg):
    cfg.OPTIM.LR = 5.0
    assert get_cfg_default().OPTIM.LR == 0.0003


def test_yaml_as_public_ones_are_written(cfg, tmp_path):
    text = """
INPUT:
  SIZE: (224, 224)
  TRANSFORMS: ["random_flip", "normalize"]
OPTIM:
  LR: 1
  WARMUP_CONS_LR: 1e-5
"""
    merge_yaml(cfg, tmp_path, text)
    assert cfg.INPUT.SIZE == (224, 224)
    assert cfg.INPUT.TRANSFORMS == ("random_flip", "normalize")
    assert cfg.OPTIM.WARMUP_CONS_LR == 1e-5
    assert type(cfg.OPTIM.LR) is float


def test_key_value_pairs(cfg):
    cfg.merge_from_list(["OPTIM.LR", "2", "OPTIM.MAX_EPOCH", "7", "DATASET.NAME", "Food101"])
    assert (cfg.OPTIM.LR, cfg.OPTIM.MAX_EPOCH, cfg.DATASET.NAME) == (2.0, 7, "Food101")
    assert type(cfg.OPTIM.LR) is float


def test_keys_added_by_a_host_are_merged_too(cfg, tmp_path):
    cfg.TRAINER.COOP = CfgNode({"N_CTX": 16, "CTX_INIT": "", "W": 2.0})
    merge_yaml(cfg, tmp_path, "TRAINER: {COOP: {CTX_INIT: 'a photo of a', W: 3}}")
    assert cfg.TRAINER.COOP == {"N_CTX": 16, "CTX_INIT": "a photo of a", "W": 3.0}


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["OPTIM.LRR", "1"], r"unknown config key OPTIM\.LRR \(did you mean 'OPTIM\.LR'\?\)"),
        (["OPTM.LR", "1"], r"unknown config key OPTM \(did you mean 'OPTIM'\?\)"),
        (["OPTIM", "1"], "OPTIM is a section"),
        (["OPTIM.LR.X", "1"], r"OPTIM\.LR takes a float, not a section"),
        (["OPTIM.LR"], r"'OPTIM\.LR' has no value"),
        (["OPTIM.MAX_EPOCH", "1.5"], r"OPTIM\.MAX_EPOCH takes a int, but 1\.5 is a float"),
        (["OPTIM.LR", "True"], r"takes a float, but True is a bool"),
        (["USE_CUDA", "1"], r"USE_CUDA takes a bool"),
    ],
)
def test_wrong_pairs(cfg, pairs, message):
    before = cfg.clone()
    with pytest.raises(UserError, match=message):
        cfg.merge_from_list(pairs)
    assert cfg == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("OPTIM:\n  LR: [1\nTRAIN: 2", r"method\.yaml, line \d: not valid yaml"),
        ("OPTIM:\n  RL: 1", r"method\.yaml: unknown config key OPTIM\.RL"),
        ("- a\n- b", "not a list"),
    ],
)
def test_wrong_files_are_named(cfg, tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        merge_yaml(cfg, tmp_path, text)


def test_missing_and_empty_files(cfg, tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.yaml: No such file"):
        cfg.merge_from_file(str(tmp_path / "nowhere.yaml"))
    before = cfg.clone()
    merge_yaml(cfg, tmp_path, "# nothing but a comment\n")
    assert cfg == before


def test_clean_cfg_keeps_the_trainers_own_section(cfg):
    cfg.TRAINER.COOP, cfg.TRAINER.MAPLE = CfgNode(), CfgNode()
    clean_cfg(cfg, "CoOp")
    assert set(cfg.TRAINER) == {"NAME", "COOP"}


def test_another_config(cfg):
    cfg.merge_from_other_cfg(CfgNode({"OPTIM": {"LR": 1}}))
    assert cfg.OPTIM.LR == 1.0
    with pytest.raises(UserError, match="the other config: unknown config key OPTIMS"):
        cfg.merge_from_other_cfg(CfgNode({"OPTIMS": {}}))

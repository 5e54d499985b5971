"""Merge into the configuration: accepted types, and errors that help."""

from __future__ import annotations

import functools
import json
import math
import re

import pytest
from yacs.config import CfgNode

from anchoropt_plugin import UserError
from anchoropt_plugin.config.check import check_values
from anchoropt_plugin.config.merge import merge_dict, merge_file, merge_list
from anchoropt_plugin.config.record import write_record
from anchoropt_plugin.config.same_run import check_same_run
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


def test_a_missing_file_is_named_with_the_nearest_one(cfg, tmp_path):
    (tmp_path / "vit_b16.yaml").write_text("SEED: 1\n")
    with pytest.raises(UserError, match=r"vit_b61\.yaml: No such file .* mean 'vit_b16\.yaml'"):
        cfg.merge_from_file(str(tmp_path / "vit_b61.yaml"))


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
        (["OPTIM.MAX_EPOCH", "1.5"], r"OPTIM\.MAX_EPOCH takes an int, but 1\.5 is a float"),
        (["OPTIM.LR", "True"], r"takes a float, but True is a bool"),
        (["USE_CUDA", "1"], r"USE_CUDA takes a bool"),
        (["DATASET.NUM_SHOTS", "None"], r"DATASET\.NUM_SHOTS takes an int, but None"),
        (["OPTIM.LR", "1" + "0" * 400], "OPTIM.LR takes a float"),
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
        ("A: " + "[" * 5000, "nested too deeply"),
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


def test_false_is_no_text(cfg, tmp_path):
    """Public code has ``TRAINER.COOP.CTX_INIT = False`` for a context without words."""
    cfg.TRAINER.COOP = CfgNode({"CTX_INIT": "a photo of a", "CSC": True, "N_CTX": 16})
    merge_yaml(cfg, tmp_path, "TRAINER: {COOP: {CTX_INIT: false, CSC: false}}")
    assert cfg.TRAINER.COOP == {"CTX_INIT": "", "CSC": False, "N_CTX": 16}
    cfg.TRAINER.COOP.CTX_INIT = "a photo of a"
    cfg.merge_from_list(["TRAINER.COOP.CTX_INIT", "False"])
    assert cfg.TRAINER.COOP.CTX_INIT == ""
    for key, value in (("CTX_INIT", "True"), ("CTX_INIT", "0"), ("N_CTX", "False")):
        with pytest.raises(UserError, match=f"TRAINER.COOP.{key} takes a"):
            cfg.merge_from_list([f"TRAINER.COOP.{key}", value])


UNUSED = ("TRAINER.COOP.W", "TRAINER.IVLP.N_CTX_TEXT", "TRAINER.IVLP.PREC")


def test_unused_keys_change_nothing(cfg, tmp_path):
    cfg.TRAINER.COOP = CfgNode({"N_CTX": 16})
    path = tmp_path / "method.yaml"
    path.write_text("TRAINER: {COOP: {N_CTX: 4, W: 3}, IVLP: {N_CTX_TEXT: 2, PREC: amp}}")
    merge_file(cfg, path, UNUSED)
    merge_list(cfg, ["TRAINER.COOP.W", "1", "TRAINER.IVLP.PREC", "fp32", "OPTIM.LR", "1"], UNUSED)
    assert cfg.TRAINER.COOP == {"N_CTX": 4} and "IVLP" not in cfg.TRAINER
    assert cfg.OPTIM.LR == 1.0
    cfg.TRAINER.COOP.W = 2.0  # a host with this key gets its value
    merge_file(cfg, path, UNUSED)
    assert cfg.TRAINER.COOP.W == 3.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"IVLP": {"PREC": "x", "N_CTX_TXT": 2}}, r"IVLP\.N_CTX_TXT .did you mean '.*N_CTX_TEXT'"),
        ({"IVLPS": {"PREC": "x"}}, r"unknown config key TRAINER\.IVLPS"),
        ({"COOPS": {"N_CTX": 4}}, r"TRAINER\.COOPS .did you mean 'TRAINER\.COOP'"),
        ({"COOPS": {"W": 4}}, r"TRAINER\.COOPS$"),  # COOP has no such key
        ({"IVLP": {}}, r"unknown config key TRAINER\.IVLP"),
        ({"IVLP": 3}, r"unknown config key TRAINER\.IVLP"),
        ({"COOP": {"V": 1}}, r"unknown config key TRAINER\.COOP\.V"),
        ({"COOP": {"PROMPT_DEPTH": 1}}, r"COOP\.PROMPT_DEPTH .did you mean 'TRAINER\.MAPLE\.PRO"),
    ],
)
def test_keys_beyond_the_unused_are_refused(cfg, values, message):
    cfg.TRAINER.COOP, cfg.TRAINER.MAPLE = CfgNode({"N_CTX": 16}), CfgNode({"PROMPT_DEPTH": 9})
    with pytest.raises(UserError, match=message):
        merge_dict(cfg, {"TRAINER": values}, "somewhere", UNUSED)


def test_a_literal_nested_too_deeply_stays_a_string(cfg):
    cfg.merge_from_list(["DATASET.NAME", "(" * 5000])
    assert cfg.DATASET.NAME == "(" * 5000


def test_the_defaults_are_sound(cfg):
    cfg.DATASET.SUBSAMPLE_CLASSES, cfg.DATASET.TEMPLATE = "all", "{{so}} a {}."
    check_values(cfg)
    cfg.OPTIM.MAX_EPOCH = 0
    check_values(cfg, training=False)


@pytest.mark.parametrize(
    ("key", "values"),
    {
        "OUTPUT_DIR": ["", "a\0b"],
        "SEED": [2**32, -(2**32)],
        "INPUT.SIZE": [(32, "a"), (32,), (32, 0), (32.5, 32), (True, 32)],
        "INPUT.TRANSFORMS": [(1,)],
        "INPUT.PIXEL_MEAN": [[0.5, 0.5], [0.5, 0.5, "a"], [0.5, 0.5, math.nan], [123.7] * 3],
        "INPUT.PIXEL_STD": [[0.5, 0.5, 0.0], [0.5] * 4, [58.4] * 3],
        "INPUT.RRCROP_SCALE": [(1,), (0.8, 0.5), (0.0, 1.0), (0.5, 1.5)],
        "INPUT.RANDAUGMENT_M": [31],
        "INPUT.GB_K": [20],
        "DATASET.TEMPLATE": ["a photo", "{} or {}", "{name}", "{0}", "{:d}", "{", "}{}"],
        "DATASET.SUBSAMPLE_CLASSES": ["old"],
        "DATALOADER.NUM_WORKERS": [-1],
        "DATALOADER.K_TRANSFORMS": [0],
        "DATALOADER.TRAIN_X.BATCH_SIZE": [0],
        "DATALOADER.TEST.BATCH_SIZE": [-1],
        "OPTIM.LR": [0.0, -0.1, math.nan, math.inf],
        "OPTIM.MOMENTUM": [-0.1],
        "OPTIM.WEIGHT_DECAY": [-0.1, math.inf],
        "OPTIM.STEPSIZE": [(), (1.5,)],
        "OPTIM.MAX_EPOCH": [0, -3],
        "OPTIM.WARMUP_CONS_LR": [-1.0],
        "TRAIN.PRINT_FREQ": [0],
        "TEST.FINAL_MODEL": ["best"],
        "TEST.SPLIT": ["train"],
    }.items(),
)
def test_invalid_values(cfg, key, values):
    *path, name = key.split(".")
    node = functools.reduce(getattr, path, cfg)
    for value in values:
        node[name] = value
        with pytest.raises(UserError, match=rf"^{re.escape(key)} is .*, but must be .+$"):
            check_values(cfg)


def test_all_faults_are_in_one_message(cfg):
    cfg.OPTIM.LR, cfg.TRAIN.PRINT_FREQ, cfg.TRAINER.MINE = -1.0, 0, CfgNode({"W": math.nan})
    with pytest.raises(UserError, match=r"OPTIM\.LR.*TRAIN\.PRINT_FREQ.*TRAINER\.MINE\.W is nan"):
        check_values(cfg)


@pytest.fixture
def trained(cfg, tmp_path):
    """An output folder with a checkpoint and the record of a run with ``cfg``."""
    (tmp_path / "learner").mkdir()
    (tmp_path / "learner" / "checkpoint").write_text("model.pth.tar-1\n")
    write_record(cfg, tmp_path, ["cat"])
    return tmp_path


def test_a_resumed_run_may_change_keys_that_training_ignores(cfg, trained):
    check_same_run(cfg, trained)
    pairs = ["OUTPUT_DIR", "b", "DATASET.ROOT", "c", "TEST.SPLIT", "val", "USE_CUDA", "False",
             "TRAIN.PRINT_FREQ", "1", "TEST.NO_TEST", "True"]  # fmt: skip
    cfg.merge_from_list(pairs)
    check_same_run(cfg, trained)


def test_another_run_is_refused(cfg, trained):
    cfg.SEED, cfg.OPTIM.LR, cfg.INPUT.SIZE, cfg.OPTIM.MAX_EPOCH = 7, 1.0, (8, 8), 99
    with pytest.raises(UserError) as caught:
        check_same_run(cfg, trained)
    assert str(caught.value) == (
        f"{trained} holds a run with other settings: INPUT.SIZE was [224, 224], now [8, 8]; "
        "OPTIM.LR was 0.0003, now 1.0; OPTIM.MAX_EPOCH was 10, now 99; and 1 more: "
        "give another --output-dir"
    )
    (trained / "learner" / "checkpoint").unlink()
    check_same_run(cfg, trained)


def test_a_record_of_an_earlier_version_lacks_the_arguments_of_the_decorator(cfg, trained):
    settings = {"position": "soft", "n_ctx": 0}
    (trained / "anchoropt.json").write_text(json.dumps({"settings": settings}))
    cfg.TRAINER.ANCHOROPT.POSITION = "soft"
    cfg.TRAINER.ANCHOROPT.N_CTX = 4
    with pytest.raises(UserError, match=r"settings: TRAINER\.ANCHOROPT\.N_CTX was 0, now 4: give"):
        check_same_run(cfg, trained)
    cfg.TRAINER.ANCHOROPT.N_CTX = 0
    check_same_run(cfg, trained)
    cfg.TRAINER.ANCHOROPT.POSITION = "sinkhorn"  # as its config.yaml says
    with pytest.raises(UserError, match="POSITION was 'soft', now 'sinkhorn': give"):
        check_same_run(cfg, trained)


def test_a_folder_of_another_repository_has_no_record(cfg, trained):
    (trained / "config.yaml").write_text("SEED: 5\nMODEL: {DEPTH: 3}\n")  # another tool's
    with pytest.raises(UserError, match="SEED was 5, now -1: give"):
        check_same_run(cfg, trained)
    (trained / "config.yaml").unlink()
    check_same_run(cfg, trained)


def test_a_string_key_takes_braces():
    cfg = CfgNode({"DATASET": {"TEMPLATE": "a photo of a {}."}})
    merge_list(cfg, ["DATASET.TEMPLATE", "{}"])
    assert cfg.DATASET.TEMPLATE == "{}"

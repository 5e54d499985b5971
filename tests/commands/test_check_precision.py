"""Which precision ``check`` tries first."""

from __future__ import annotations

import argparse

import pytest
import torch
from yacs.config import CfgNode

from anchoropt_plugin.commands.check import command
from anchoropt_plugin.commands.check.small_trainer import HostError


@pytest.mark.parametrize(
    ("has_gpu", "wanted"), [(True, ["fp16", "fp32"]), (False, ["fp32", "fp16"])]
)
def test_check_tries_the_default_of_the_host_first_on_a_gpu(has_gpu, wanted, monkeypatch, tmp_path):
    tried = []

    def fails(host, with_anchoropt, cfg, *_):
        assert cfg.TRAINER.PREC == cfg.TRAINER.COOP.PREC
        tried.append(cfg.TRAINER.PREC)
        raise HostError(f"attempt {len(tried)}")

    def keys(cfg):  # some repositories have one PREC for all their trainers
        cfg.TRAINER.PREC = "fp16"
        cfg.TRAINER.COOP = CfgNode({"PREC": "fp16"})

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "own_keys", lambda: keys)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(command, "_trial", fails)
    given = {"learner": "", "config_file": "", "opts": [], "classes": None}
    own = wanted.index("fp16") + 1  # an error in another precision hides the true cause
    with pytest.raises(HostError, match=f"attempt {own}"):
        command.run(argparse.Namespace(trainer="trainers.coop:CoOp", **given))
    assert tried == wanted

"""Checkpoints of hosts that load in ways of their own, with and without AnchorOPT in them."""

from __future__ import annotations

import pytest
import torch

from anchoropt_plugin import UserError, load_predictor
from dassl.engine import TrainerX
from dassl.utils import load_checkpoint

from .test_host_parts import odd_host
from .test_two_stages import build, root, run

__all__ = ["root"]


def only_ctx(self, directory, epoch=None):
    for name, model in self._models.items():
        state = load_checkpoint(f"{directory}/{name}/model.pth.tar-{epoch}")["state_dict"]
        model.load_state_dict({k: v for k, v in state.items() if k == "ctx"}, strict=False)


def strict(self, directory, epoch=None):
    """As Dassl's own, which takes the classes of the checkpoint alone."""
    TrainerX.load_model(self, directory, epoch)


def test_a_host_that_leaves_out_what_anchoropt_saved_is_told(root, tmp_path):
    name = odd_host("OnlyContext", load_model=only_ctx)
    trainer = build(root, tmp_path / "a", trainer=name)
    trainer.anchoropt_stage_one()
    trainer.save_model(0, str(tmp_path / "a"))
    again = build(root, tmp_path / "b", trainer=name)
    with pytest.raises(UserError, match=r"OnlyContext does not load .* must load everything"):
        again.load_model(str(tmp_path / "a"), epoch=1)
    # A checkpoint of the host alone has no more than it loads.
    alone = build(root, tmp_path / "c", trainer="OnlyContext")
    alone.save_model(0, str(tmp_path / "c"))
    again.load_model(str(tmp_path / "c"), epoch=1)


def test_a_strict_host_loads_a_checkpoint_from_before(root, tmp_path):
    name = odd_host("Strict", load_model=strict)
    alone = build(root, tmp_path / "a", trainer="Strict")
    alone.save_model(0, str(tmp_path / "a"))
    trainer = build(root, tmp_path / "b", trainer=name)
    logits = trainer.model.prompt_learner.anchoropt.logits.detach().clone()
    trainer.load_model(str(tmp_path / "a"), epoch=1)
    learner = trainer.model.prompt_learner
    assert torch.equal(learner.ctx, alone.model.prompt_learner.ctx)
    assert torch.equal(learner.anchoropt.logits, logits)


def test_a_checkpoint_with_a_part_of_the_position_alone_is_refused(root, tmp_path):
    learner = build(root, tmp_path).model.prompt_learner
    state = learner.state_dict()
    del state["anchoropt.anchors"]
    with pytest.raises(RuntimeError, match=r"Missing key.*anchoropt\.anchors"):
        learner.load_state_dict(state)
    assert not learner.anchoropt.is_loaded


def of_any_classes(self, directory, epoch=None):
    """As public hosts do: all but the class names, and further keys are ignored."""
    for name, model in self._models.items():
        state = load_checkpoint(f"{directory}/{name}/model.pth.tar-{epoch}")["state_dict"]
        state = {key: value for key, value in state.items() if not key.startswith("token_")}
        model.load_state_dict(state, strict=False)


def test_contexts_of_single_classes_fit_no_others_in_any_host(root, tmp_path):
    name = odd_host("AnyClasses", load_model=of_any_classes)
    keys = ["TRAINER.COOP.CSC", "True"]
    trainer = build(root, tmp_path / "a", trainer=name, keys=keys)
    trainer.anchoropt_stage_one()
    trainer.save_model(0, str(tmp_path / "a"))
    build(root, tmp_path / "b", trainer=name, keys=keys).load_model(str(tmp_path / "a"), epoch=1)
    other = build(root, tmp_path / "c", trainer=name, classes="new", keys=keys)
    with pytest.raises(UserError, match=r"one context for each of 5 other classes \(CSC True\)"):
        other.load_model(str(tmp_path / "a"), epoch=1)
    run(root, tmp_path / "d", trainer="AnyClasses", keys=keys)  # without AnchorOPT
    alone = build(root, tmp_path / "e", trainer="AnyClasses", classes="new", keys=keys)
    with pytest.raises(UserError, match="in the order of the training"):
        alone.load_model(str(tmp_path / "d"), epoch=3)
    names = load_predictor(tmp_path / "d").classes
    with pytest.raises(UserError, match="in the order of the training"):
        load_predictor(tmp_path / "d", names[::-1])


def test_a_strict_host_takes_no_checkpoint_of_other_classes(root, tmp_path):
    """Its prompts would be those of the checkpoint's classes, its labels those of the others."""
    odd_host("StrictOnClasses", load_model=strict)
    trainer = build(root, tmp_path / "a", trainer="StrictOnClasses")
    trainer.save_model(0, str(tmp_path / "a"))
    other = build(root, tmp_path / "b", trainer="StrictOnClasses", classes="new")
    with pytest.raises(UserError, match="token_suffix belongs to other classes"):
        other.load_model(str(tmp_path / "a"), epoch=1)


def test_a_host_of_another_repository_refuses_a_checkpoint_with_anchors(root, tmp_path):
    name = odd_host("OfAnother", load_model=of_any_classes)
    trainer = build(root, tmp_path / "a", trainer=name)
    trainer.anchoropt_stage_one()
    trainer.save_model(0, str(tmp_path / "a"))
    alone = build(root, tmp_path / "b", trainer="OfAnother")
    with pytest.raises(UserError, match="was trained with AnchorOPT, and the trainer is without"):
        alone.load_model(str(tmp_path / "a"), epoch=1)
    (path,) = (tmp_path / "a").glob("*/model.pth.tar-1")
    state = torch.load(path, weights_only=False)
    del state["state_dict"]["anchoropt.logits"], state["state_dict"]["anchoropt.anchors"]
    for name in ("_extra_state", "relaxation", "pooling"):
        del state["state_dict"][f"anchoropt.{name}"]
    torch.save(state, path)
    alone.load_model(str(tmp_path / "a"), epoch=1)

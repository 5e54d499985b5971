"""Anchors and checkpoints of stage 2 as AnchorOPT's released code writes them."""

from __future__ import annotations

import pickle
import re

import pytest
import torch

import train
from anchoropt_plugin import UserError
from anchoropt_plugin.training.released_files import anchors_file

from .runs import build, command

HOSTS = ["CoOp", "CoCoOp", "MaPLe", "DePT"]
REFERENCE = ["TRAINER.ANCHOROPT.PRESET", "reference", "TRAINER.ANCHOROPT.N_CTX", "3"]
M, D = 3, 128
"""Soft tokens, and the width of the embedded CLIP's text tower."""


class Scheduler:
    """An object of a class of its own, which is pickled into every released file."""

    def __init__(self):
        self.last_epoch = 20


def write(path, state):
    """Write a checkpoint with a released file's further entries."""
    path.parent.mkdir(parents=True)
    more = {"optimizer": {"state": {}}, "scheduler": Scheduler(), "val_result": None}
    torch.save({"state_dict": state, "epoch": 20, **more}, path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


def anchors(path, seed=0):
    """Write anchors of three classes, and return them, (1, D) in half precision."""
    tokens = torch.randn(1, D, generator=torch.Generator().manual_seed(seed)).half()
    frame = {"token_prefix": 1, "token_of": 1, "token_suffix": 74}
    frame = {name: torch.randn(3, n, D).half() for name, n in frame.items()}
    write(path / "anchor_prompt_learner/model.pth.tar", {"anchor_ctx_1": tokens, **frame})
    return tokens


def stage_two(learner, host, folder, n_ctx=M):
    """Write a checkpoint of stage 2 for a learner of ours.

    Returns:
        The tensors in it by our names of them in the learner; MaPLe's with anchors.
    """
    values = {
        name: torch.randn(p.shape).half() if p.dtype != torch.float16 else torch.randn_like(p)
        for name, p in learner.named_parameters()
        if not name.startswith("anchoropt")
    }
    values["ctx"] = torch.randn(n_ctx, D).half()
    logits = torch.randn(n_ctx + 1, n_ctx + 1)
    frame = {"token_prefix": torch.randn(3, 1, D).half()}
    frame["token_suffix"] = torch.randn(3, 75 - n_ctx, D).half()
    state = {**values, "ctx_pos_params": logits, **frame}
    ours = {**values, "anchoropt.logits": logits}
    if host == "MaPLe":
        ours["anchoropt.anchors"] = torch.randn(1, D).half()
        state = {f"prompt_learner.{name}": value for name, value in state.items()}
        state["anchor_prompt_learner.anchor_ctx_1"] = ours["anchoropt.anchors"]
        for name, n in {"token_prefix": 1, "token_of": 1, "token_suffix": 74}.items():
            state[f"anchor_prompt_learner.{name}"] = torch.randn(3, n, D).half()
        state["logit_scale"] = torch.tensor(4.6)
        state["image_encoder_vanilla.class_embedding"] = torch.randn(768).half()
        state["text_encoder_maple.ln_final.weight"] = torch.randn(D).half()
    name = "MultiModalPromptLearner" if host == "MaPLe" else "normal_prompt_learner"
    write(folder / name / "model.pth.tar-20", state)
    return ours


def check(learner, wanted):
    """Check that a learner holds the tensors, and that nothing else of it is learned."""
    here = learner.state_dict()
    assert {name for name, _ in learner.named_parameters()} <= wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(here[name], value.to(here[name].dtype)), name


# ---------------------------------------------------------------------- checkpoints of stage 2
@pytest.mark.parametrize("classes", ["base", "new"])
@pytest.mark.parametrize("host", HOSTS)
def test_a_checkpoint_of_stage_two_loads_whole(root, tmp_path, host, classes, capsys, caplog):
    keys = [*REFERENCE, "TRAINER.ANCHOROPT.ANCHOR_WEIGHTS", str(tmp_path / "anchor_weights")]
    given = anchors(tmp_path / "anchor_weights" / "Digits")
    trainer = build(root, tmp_path / "out", f"{host}_AnchorOPT", classes, keys)
    learner = trainer.model.prompt_learner
    wanted = stage_two(learner, host, tmp_path / "run")
    wanted.setdefault("anchoropt.anchors", given)  # MaPLe's file holds its own
    trainer.load_model(str(tmp_path / "run"), epoch=20)
    check(learner, wanted)
    trainer.test()
    check(learner, wanted)
    printed = capsys.readouterr().out
    assert ("Anchors loaded from" in printed) == (host != "MaPLe")
    assert "Stage 1" not in printed and "without AnchorOPT" not in caplog.text
    assert ("no second head" in printed) == (host == "DePT")
    if host == "DePT":
        assert not trainer.model.knows_classes


def test_the_last_checkpoint_of_a_released_folder(root, tmp_path):
    keys = [*REFERENCE, "TRAINER.ANCHOROPT.ANCHOR_WEIGHTS", str(tmp_path)]
    anchors(tmp_path)
    trainer = build(root, tmp_path / "out", "CoOp_AnchorOPT", keys=keys)
    wanted = stage_two(trainer.model.prompt_learner, "CoOp", tmp_path / "run")
    folder = tmp_path / "run" / "normal_prompt_learner"
    (folder / "checkpoint").write_text("model.pth.tar-20\n")
    trainer.load_model(str(tmp_path / "run"), epoch=-1)
    check(trainer.model.prompt_learner, wanted)
    (folder / "model.pth.tar-20").rename(folder / "model-best.pth.tar")
    trainer.load_model(str(tmp_path / "run"))
    with pytest.raises(UserError, match=r"there is no checkpoint .*/prompt_learner/model"):
        trainer.load_model(str(tmp_path / "run"), epoch=20)


@pytest.mark.parametrize("host", HOSTS)
def test_training_starts_from_such_a_checkpoint(root, tmp_path, host, capsys):
    learner = build(root, tmp_path / "a", f"{host}_AnchorOPT", keys=REFERENCE).model.prompt_learner
    wanted = stage_two(learner, host, tmp_path / "run")
    (file,) = (tmp_path / "run").glob("*/model.pth.tar-20")
    keys = [*REFERENCE, "MODEL.INIT_WEIGHTS", str(file)]
    trainer = build(root, tmp_path / "b", f"{host}_AnchorOPT", keys=keys)
    wanted.pop("anchoropt.anchors", None)
    check(trainer.model.prompt_learner, wanted)
    assert not trainer.anchoropt.has_anchors  # ANCHOR_WEIGHTS names them
    assert f"of the released code from {file}" in capsys.readouterr().out
    if host != "DePT":  # whose own names differ
        keys += [f"TRAINER.{trainer.node}.N_CTX", "3"]
        alone = build(root, tmp_path / "c", host, keys=keys).model.prompt_learner
        assert torch.equal(alone.ctx, wanted["ctx"].float())


def test_initial_weights_of_another_length_are_refused(root, tmp_path, capsys):
    learner = build(root, tmp_path / "a", "CoOp_AnchorOPT", keys=REFERENCE).model.prompt_learner
    stage_two(learner, "CoOp", tmp_path / "run", n_ctx=5)
    file = tmp_path / "run/normal_prompt_learner/model.pth.tar-20"
    keys = [*REFERENCE, "MODEL.INIT_WEIGHTS", str(file)]
    assert train.main(command(root, tmp_path / "out", "CoOp_AnchorOPT", keys=keys)) == 2
    assert f"{file} does not fit: ctx is (5, {D})" in capsys.readouterr().err


TEST = ["--eval-only", "--load-epoch", "20", "--model-dir"]


@pytest.mark.parametrize(
    ("trainer", "keys", "message"),
    [
        ("CoOp_AnchorOPT", REFERENCE, "which holds no anchors: give the folder anchor_weights"),
        (
            "CoOp_AnchorOPT",
            REFERENCE[2:],
            r"with other settings than this run \(POSITION gumbel, .*\): give .*PRESET reference",
        ),
        ("CoOp_AnchorOPT", REFERENCE[:2], "the position matrix of the checkpoint is|does not fit"),
        ("CoOp", ["TRAINER.COOP.N_CTX", "3"], "was trained with AnchorOPT: give the --trainer"),
        (
            "CoOp_AnchorOPT",
            [*REFERENCE, "TRAINER.ANCHOROPT.ANCHOR_WEIGHTS", "{}/anchor_weights"],
            "anchor_weights has no anchors for Digits: .*has anchors for DTD",
        ),
        (
            "CoOp_AnchorOPT",
            [*REFERENCE, "TRAINER.ANCHOROPT.ANCHOR_WEIGHTS", "{}/nowhere"],
            "cannot open the checkpoint .*/nowhere",
        ),
    ],
)
def test_a_test_that_does_not_fit_gets_one_line(root, tmp_path, capsys, trainer, keys, message):
    learner = build(root, tmp_path / "a", "CoOp_AnchorOPT", keys=REFERENCE).model.prompt_learner
    stage_two(learner, "CoOp", tmp_path / "run")
    anchors(tmp_path / "anchor_weights" / "DTD")
    keys = [key.format(tmp_path) for key in keys]
    if keys[:2] == REFERENCE[:2] and len(keys) == 2:
        anchors(tmp_path / "anchor_weights" / "Digits")
        keys += ["TRAINER.ANCHOROPT.ANCHOR_WEIGHTS", str(tmp_path / "anchor_weights")]
    capsys.readouterr()
    flags = [*TEST, str(tmp_path / "run")]
    assert train.main(command(root, tmp_path / "out", trainer, "new", flags, keys)) == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert re.search(message, line), line


def test_a_command_line_tests_a_released_checkpoint(root, tmp_path, capsys):
    learner = build(root, tmp_path / "a", "MaPLe_AnchorOPT", keys=REFERENCE).model.prompt_learner
    stage_two(learner, "MaPLe", tmp_path / "run")
    flags = [*TEST, str(tmp_path / "run")]
    words = command(root, tmp_path / "out", "MaPLe_AnchorOPT", "new", flags, REFERENCE)
    assert train.main(words) == 0
    assert "* accuracy:" in capsys.readouterr().out


# ---------------------------------------------------------------------- anchors
def test_the_file_of_a_data_set_is_found(tmp_path):
    folders = ["DTD", "ImageNet", "Caltech101"]
    for folder in folders:
        anchors(tmp_path / folder)
    found = {
        **{"DescribableTextures": "DTD", "ImageNet": "ImageNet", "Caltech101": "Caltech101"},
        **dict.fromkeys(["ImageNetV2", "ImageNetSketch", "ImageNetA", "ImageNetR"], "ImageNet"),
    }
    for data_set, folder in found.items():
        file = tmp_path / folder / "anchor_prompt_learner/model.pth.tar"
        assert anchors_file(tmp_path, data_set) == file
        assert anchors_file(file, "Food101") == file
        assert anchors_file(tmp_path / folder, "Food101") == file  # as a run's output folder
    with pytest.raises(UserError, match=r"Food101/.*; .* for Caltech101, DTD, ImageNet$"):
        anchors_file(tmp_path, "Food101")
    with pytest.raises(UserError, match="has anchors for no data set"):
        anchors_file(tmp_path / "DTD" / "anchor_prompt_learner", "DescribableTextures")


def test_one_s_own_folder_comes_first(tmp_path):
    anchors(tmp_path / "DTD"), anchors(tmp_path / "DescribableTextures")
    assert anchors_file(tmp_path, "DescribableTextures").parts[-3] == "DescribableTextures"


def test_stage_two_trains_with_the_anchors_in_a_folder(root, tmp_path, capsys):
    given = anchors(tmp_path / "anchor_weights" / "Digits")
    keys = ["TRAINER.ANCHOROPT.ANCHOR_WEIGHTS", str(tmp_path / "anchor_weights")]
    out = tmp_path / "out"
    assert train.main(command(root, out, "CoOp_AnchorOPT", keys=keys)) == 0
    file = tmp_path / "anchor_weights/Digits/anchor_prompt_learner/model.pth.tar"
    assert f"Stage 1: anchors loaded from {file}" in capsys.readouterr().out
    saved = torch.load(out / "prompt_learner/model.pth.tar-2", weights_only=True)["state_dict"]
    assert torch.equal(saved["anchoropt.anchors"], given.float())


@pytest.mark.parametrize(
    ("path", "message"), [("DTD", "has no anchors for Digits"), ("x", "x does not exist: give a")]
)
def test_missing_anchors_are_told_before_anything_is_written(root, tmp_path, capsys, path, message):
    anchors(tmp_path / "DTD" / "DTD")
    keys = ["TRAINER.ANCHOROPT.ANCHOR_WEIGHTS", str(tmp_path / path)]
    assert train.main(command(root, tmp_path / "out", "CoOp_AnchorOPT", keys=keys)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

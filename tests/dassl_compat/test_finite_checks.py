"""A number that is not finite ends a run with one line; half precision never overflows."""

from __future__ import annotations

import math
import re
from types import SimpleNamespace

import pytest
import torch
from clip.model import convert_weights
from torch.nn import functional as F

import train
from anchoropt_plugin import anchoropt
from anchoropt_plugin.dassl_compat.finite_checks import checked_step
from anchoropt_plugin.method.objective import PromptLoss
from anchoropt_plugin.process.randomness import set_random_seed
from anchoropt_plugin.training.step_losses import StepLosses
from dassl.engine import TRAINER_REGISTRY, build_trainer
from trainers import prompted_clip
from trainers.coop import CoOp

from ..test_train_cli import DIGITS, TINY, cfg_of, root

__all__ = ["root"]

TWO = "epoch 2, batch 3 of 5"
LINE = re.compile(
    r"error: (epoch 2, batch 3 of 5: [^;\n]+); the last good checkpoint is (\S+)"
    r"; images of the batch, in (\S+)/images: (\w+/train_\d+\.png(?:, )?){4} "
    r"\(try PREC fp32, or a lower OPTIM\.LR\)\n"
)


@pytest.fixture
def words(root, tmp_path):
    """Return a command of three epochs of five batches of four images."""

    def build(trainer, *keys):
        return [
            *("--root", root, "--output-dir", str(tmp_path / "out"), "--trainer", trainer),
            *("--dataset-config-file", DIGITS, "--config-file", TINY, "--seed", "1"),
            *("DATASET.NUM_SHOTS", "4", "DATASET.SUBSAMPLE_CLASSES", "base", "USE_CUDA", "False"),
            *("OPTIM.MAX_EPOCH", "3", "DATALOADER.TRAIN_X.BATCH_SIZE", "4"),
            *("TRAIN.CHECKPOINT_FREQ", "1", "TRAINER.ANCHOROPT.ANCHOR_EPOCHS", "2", *keys),
        ]  # fmt: skip

    return build


def is_third_of_epoch_two(trainer):
    return (trainer.epoch, trainer.batch_idx) == (1, 2)


class Poisoned(CoOp):
    """A host with a loss of NaN in the third step of the second epoch."""

    def loss(self, image, label):
        loss, output = super().loss(image, label)
        return loss * (math.nan if is_third_of_epoch_two(self) else 1), output


class Careless(CoOp):
    """A host that checks nothing and returns no loss, like public hosts in half precision."""

    def forward_backward(self, batch):
        image, label = self.parse_batch_train(batch)
        output = self.model(image * (math.inf if is_third_of_epoch_two(self) else 1))
        loss = F.cross_entropy(output, label)
        self.model_zero_grad()
        loss.backward()
        self.optim.step()


class Further(Careless):
    """A host with a second loss that is not finite."""

    def forward_backward(self, batch):
        image, label = self.parse_batch_train(batch)
        loss = F.cross_entropy(self.model(image), label)
        more = self.model.prompt_learner.ctx.float().sum() * 0
        loss = loss + (math.inf + more if is_third_of_epoch_two(self) else 0)
        self.model_zero_grad()
        loss.backward()
        return {"loss": loss.item()}


class Exploding(CoOp):
    """A host with finite losses, but broken weights after the third step of the second epoch."""

    def forward_backward(self, batch):
        summary = super().forward_backward(batch)
        if is_third_of_epoch_two(self):
            with torch.no_grad():
                for parameter in self.model.prompt_learner.parameters():
                    parameter *= math.nan
        return summary


class ExplodingLast(CoOp):
    """A host whose weights break in the last step of an epoch: no later loss shows the fault."""

    def forward_backward(self, batch):
        summary = super().forward_backward(batch)
        if (self.epoch, self.batch_idx) == (1, 4):
            with torch.no_grad():
                self.model.prompt_learner.ctx *= math.nan
        return summary


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(TRAINER_REGISTRY, "_obj_map", dict(TRAINER_REGISTRY._obj_map))
    for trainer in (Poisoned, Careless, Further, Exploding, ExplodingLast):
        TRAINER_REGISTRY.register()(trainer)
        anchoropt(node="COOP")(trainer)


def error_of(capsys, words):
    capsys.readouterr()
    assert train.main(words) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("trainer", "fault"),
    [
        ("Poisoned", "Loss is infinite or NaN!"),
        ("Poisoned_AnchorOPT", "Loss is infinite or NaN!"),
        ("Careless_AnchorOPT", "the loss is nan"),
        ("Further", "loss is inf"),
        ("Further_AnchorOPT", "loss is inf"),
    ],
)
def test_the_step_its_images_and_the_last_checkpoint_are_named(
    words, tmp_path, capsys, trainer, fault
):
    error = error_of(capsys, words(trainer))
    match = LINE.fullmatch(error)
    assert match, error
    folder = tmp_path / "out/prompt_learner"
    assert match[1] == f"{TWO}: {fault}"
    assert match[2] == str(folder / "model.pth.tar-1")
    assert (folder / "checkpoint").read_text() == "model.pth.tar-1\n"
    assert not (folder / "model.pth.tar-2").exists()


@pytest.mark.parametrize("trainer", ["Exploding", "Exploding_AnchorOPT"])
def test_weights_that_are_not_finite_end_the_run_at_the_next_step(words, capsys, trainer):
    error = error_of(capsys, words(trainer))
    assert error.startswith("error: epoch 2, batch 4 of 5: "), error
    assert error.count("\n") == 1
    assert "model.pth.tar-1; images of the batch, in" in error


@pytest.mark.parametrize("trainer", ["ExplodingLast", "ExplodingLast_AnchorOPT"])
def test_weights_that_are_not_finite_are_not_saved(words, tmp_path, capsys, trainer):
    error = error_of(capsys, words(trainer, "TEST.FINAL_MODEL", "best_val"))
    folder = tmp_path / "out/prompt_learner"
    assert error.startswith("error: after epoch 2 ctx of prompt_learner is not finite; the last ")
    assert f"checkpoint is {folder}/model.pth.tar-1 " in error
    assert sorted(path.name for path in folder.glob("*-[0-9]")) == ["model.pth.tar-1"]


def test_the_first_step_has_no_checkpoint_to_name(words, capsys, monkeypatch):
    monkeypatch.setattr(CoOp, "loss", lambda *_: (torch.tensor(math.inf), None))
    error = error_of(capsys, words("CoOp"))
    assert error.startswith("error: epoch 1, batch 1 of 5: Loss is infinite or NaN!; no checkpoint")


def test_steps_that_amp_skips_are_counted(capsys):
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    trainer = SimpleNamespace(scaler=scaler, epoch=0, num_batches=3, device="cpu")

    def step(factor):
        optimizer.zero_grad()
        scaler.scale((weight * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        return {"loss": 1.0}

    for epoch, factors in enumerate(([1.0, math.inf, math.inf], [1.0, 1.0, 1.0])):
        trainer.epoch = epoch
        for trainer.batch_idx, factor in enumerate(factors):
            # The decorator's call is nested in the training loop's.
            checked_step(trainer, lambda x: checked_step(trainer, step, x), factor)
    assert capsys.readouterr().out == (
        "epoch 1: amp skipped 2 of 3 steps because their gradients overflowed\n"
    )
    assert torch.isfinite(weight).all()


def test_other_errors_of_a_host_stay_what_they_are():
    trainer = SimpleNamespace(get_model_names=list)

    def step():
        raise ValueError("sizes differ")

    with pytest.raises(ValueError, match=r"^sizes differ$"):
        checked_step(trainer, step)


def in_half(clip, precision, device):
    """Convert a CLIP as ``to_precision`` does on a GPU."""
    convert_weights(clip.float())
    return clip


@pytest.mark.parametrize(
    ("trainer", "node", "batch", "ce", "kd", "temperature"),
    [
        ("CoOp", "COOP", 32, 100, 1000, 2),
        ("CoOp", "COOP", 32, 1000, 1000, 4),
        ("CoCoOp", "COCOOP", 1, 100, 100, 0.5),
        ("CoCoOp", "COCOOP", 1, 10, 1000, 4),
        ("CoCoOp", "COCOOP", 1, 1000, 1000, 4),
        ("MaPLe", "MAPLE", 4, 10, 1000, 4),
        ("MaPLe", "MAPLE", 4, 1000, 1000, 4),
        ("DePT", "COOP", 32, 10, 0, 1),
        ("DePT", "COOP", 32, 1000, 0, 1),
    ],
)
def test_half_precision_is_finite_on_the_published_weights_and_above(
    words, monkeypatch, trainer, node, batch, ce, kd, temperature
):
    monkeypatch.setattr(prompted_clip, "to_precision", in_half)
    settings = {"PROMPT_CE_WEIGHT": ce, "KD_WEIGHT": kd, "KD_TEMPERATURE": temperature}
    keys = [word for key, x in settings.items() for word in (f"TRAINER.ANCHOROPT.{key}", str(x))]
    keys += ["DATALOADER.TRAIN_X.BATCH_SIZE", str(batch), f"TRAINER.{node}.PREC", "fp16"]
    keys += ["OPTIM.LR", "0.002", "TRAINER.MAPLE.PROMPT_DEPTH", "3"]
    cfg = cfg_of(*words(f"{trainer}_AnchorOPT", *keys))
    set_random_seed(1)
    run = build_trainer(cfg)
    run.epoch, run.batch_idx, run.num_batches = 0, 0, 100
    run.anchoropt_stage_one()
    assert torch.isfinite(run.anchoropt.position.anchors).all()
    run.set_model_mode("train")
    assert run.model.dtype == torch.float16
    for _ in range(2):
        summary = run.forward_backward(next(iter(run.train_loader_x)))
        assert math.isfinite(summary["loss"])
        for parameter in run.model.prompt_learner.parameters():
            assert torch.isfinite(parameter).all()
            assert parameter.grad is None or torch.isfinite(parameter.grad).all()


def test_a_weight_lifts_no_loss_of_half_precision_over_its_range(words):
    weight = "TRAINER.ANCHOROPT.PROMPT_CE_WEIGHT", "1000.0"
    run = build_trainer(cfg_of(*words("CoOp_AnchorOPT", *weight))).anchoropt
    run.settings = SimpleNamespace(prompt_ce_weight=1000.0, kd_weight=0.0)
    logits = torch.tensor([[0.0, 100.0]]).half()
    cross_entropy = F.cross_entropy(logits, torch.tensor([0]))
    assert cross_entropy.dtype == torch.float16
    assert run.loss(cross_entropy, logits).item() == 1e5
    run.hook = SimpleNamespace(
        is_prompt_logits=lambda *given: False, is_of_prompt_loss=lambda *given: True
    )
    with PromptLoss(StepLosses(run)):
        assert F.cross_entropy(logits, torch.tensor([0])).item() == 1e5

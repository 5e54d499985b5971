"""What the host reads late: losses that are not finite, skipped steps, the numbers of the log."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import pytest
import torch

import train
from anchoropt_plugin.process.late_checks import LateCheck, LateNumber, settle_all
from benchmarks.pretend_gpu import pretend_gpu
from trainers.host import PromptTrainer

from .short_runs import command, few_images

# Autograd learns of the devices at its first backward pass.
with pretend_gpu():
    pass


FIVE_STEPS = ["DATALOADER.TRAIN_X.BATCH_SIZE", "2"]
"""An epoch has ten images."""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Of the data sets; evaluations take a part of their images."""
    with few_images():
        yield tmp_path_factory.mktemp("data")


def broken_in(monkeypatch, batch_idx):
    """Make the loss of a step of the second epoch NaN."""
    loss = PromptTrainer.loss

    def broken(self, image, label):
        value, output = loss(self, image, label)
        is_broken = (self.epoch, self.batch_idx) == (1, batch_idx % self.num_batches)
        return value * (math.nan if is_broken else 1), output

    monkeypatch.setattr(PromptTrainer, "loss", broken)


@pytest.mark.parametrize("batch_idx", [0, 1, -1], ids=["first", "second", "last"])
def test_the_step_of_a_broken_loss_is_named(batch_idx, gpu, root, tmp_path, monkeypatch, capsys):
    broken_in(monkeypatch, batch_idx)
    assert train.main(command(root, tmp_path, "CoOp", "fp32", keys=FIVE_STEPS)) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    number = range(1, 6)[batch_idx]
    assert line.startswith(f"error: epoch 2, batch {number} of 5: Loss is infinite or NaN!"), line
    assert "model.pth.tar-1; images of the batch, in" in line
    assert not (tmp_path / "prompt_learner" / "model.pth.tar-2").exists()


def test_steps_that_amp_skips_are_counted(gpu, root, tmp_path, monkeypatch, capsys):
    loss, scales = PromptTrainer.loss, []

    def overflowing(self, image, label):
        scales.append(self.scaler.get_scale())
        value, output = loss(self, image, label)
        return value * (1e30 if (self.epoch, self.batch_idx) in [(0, 1), (0, 4)] else 1), output

    monkeypatch.setattr(PromptTrainer, "loss", overflowing)
    assert train.main(command(root, tmp_path, "CoOp", "amp", keys=FIVE_STEPS)) == 0
    skipped = [after < before for before, after in pairwise(scales)]
    first, second = sum(skipped[:5]), sum(skipped[5:])
    assert first >= 2 and not second
    out = capsys.readouterr().out
    assert f"epoch 1: amp skipped {first} of 5 steps because their gradients overflowed\n" in out
    assert "epoch 2: amp skipped" not in out


def test_the_log_has_the_numbers_of_the_cpu(gpu, root, tmp_path):
    found = []
    for name, keys in (("cpu", ["USE_CUDA", "False"]), ("gpu", [])):
        keys = [*keys, *FIVE_STEPS, "TRAIN.PRINT_FREQ", "2", "TEST.NO_TEST", "True"]
        assert train.main(command(root, tmp_path / name, "CoOp", "fp32", keys=keys)) == 0
        events = map(json.loads, (tmp_path / name / "events.jsonl").read_text().splitlines())
        found.append([event for event in events if event["event"] == "epoch"])
    assert len(found[0]) == 2
    for on_cpu, on_gpu in zip(*found, strict=True):
        assert on_cpu.keys() == on_gpu.keys()
        for key in ("loss", "acc", "lr"):
            assert on_gpu[key] == pytest.approx(on_cpu[key], rel=5e-6), key


def test_a_number_is_copied_without_a_wait(gpu):
    value = torch.tensor(1.5, device="cuda")
    gpu.clear()
    number = LateNumber(value)
    value.add_(1)
    assert float(number) == 1.5
    assert not gpu.waits


def test_the_last_flag_is_read_in_the_end(gpu):
    check = LateCheck(RuntimeError("changed"))
    check.expect(torch.tensor(False, device="cuda"))
    with pytest.raises(RuntimeError, match="changed"):
        settle_all()
    settle_all()

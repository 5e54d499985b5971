"""What AnchorOPT writes for TensorBoard, against a plain computation from the same steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from anchoropt_plugin.training.stage_two import AnchorOPT

ROOT = Path(__file__).parents[2]


def run(root, out, *keys, flags=()):
    words = [
        *("--root", str(root), "--output-dir", str(out), "--trainer", "CoOp_AnchorOPT"),
        *("--dataset-config-file", str(ROOT / "configs/datasets/digits.yaml"), "--seed", "1"),
        *("--config-file", str(ROOT / "configs/trainers/CoOp/tiny.yaml"), *flags),
        *("OPTIM.MAX_EPOCH", "2", "DATASET.NUM_SHOTS", "8", "TRAINER.COOP.N_CTX", "4"),
        *("TRAINER.ANCHOROPT.ANCHOR_EPOCHS", "4", "TRAINER.ANCHOROPT.KD_TEMPERATURE", "2.0"),
        *("TRAINER.ANCHOROPT.ANCHOR_CACHE", str(root / "cache"), "USE_CUDA", "False", *keys),
    ]
    assert train.main(words) == 0


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def steps():
    return []


@pytest.fixture(scope="module")
def written(root, steps, tmp_path_factory):
    """A run's output folder; ``steps`` has what each of its steps was given."""

    def loss(self, cross_entropy, logits, *more, own=AnchorOPT.loss):
        steps.append((cross_entropy.item(), logits.detach().clone(), self.logits().clone()))
        return own(self, cross_entropy, logits, *more)

    out = tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AnchorOPT, "loss", loss)
        run(root, out)
    return out


def events(out):
    (folder,) = out.rglob("tensorboard")
    return EventAccumulator(str(folder), {"images": 0, "scalars": 0}).Reload()


def scalar(out, name):
    return [(event.step, event.value) for event in events(out).Scalars(f"anchoropt/{name}")]


def test_the_losses_and_how_logits_agree_are_means_over_an_epoch(written, steps):
    half = len(steps) // 2
    for epoch, taken in enumerate((steps[:half], steps[half:])):
        plain = {"cross_entropy": [], "distillation": [], "agreement": []}
        for cross_entropy, own, anchors in taken:
            teacher = ((own + anchors) / 2 / 2.0).softmax(-1)
            divergence = (teacher * (teacher.log() - (own / 2.0).softmax(-1).log())).sum()
            plain["cross_entropy"].append(cross_entropy)
            plain["distillation"].append(2.0**2 * divergence.item() / own.numel())
            same = [a.argmax() == b.argmax() for a, b in zip(own, anchors, strict=True)]
            plain["agreement"].append(sum(same).item() / len(same))
        for name, values in plain.items():
            step, value = scalar(written, name)[epoch]
            assert step == epoch
            assert value == pytest.approx(sum(values) / len(values), rel=1e-3, abs=1e-6), name


def test_the_position_matrix_its_entropy_and_its_image(written):
    lines = [json.loads(line) for line in (written / "position.jsonl").read_text().splitlines()]
    for line, (step, value) in zip(lines, scalar(written, "position_entropy"), strict=True):
        matrix = torch.tensor(line["P"])
        assert step == line["epoch"] - 1
        plain = -(matrix * matrix.log()).sum(1).mean().item()
        assert value == pytest.approx(plain, abs=2e-3)
    images = events(written).Images("anchoropt/position")
    assert [(one.step, one.width, one.height) for one in images] == [(0, 5, 5), (1, 5, 5)]


def test_the_loss_of_stage_one(written):
    log = (written / "log.txt").read_text()
    values = scalar(written, "stage_1_loss")
    assert [step for step, _ in values] == [0, 1, 2, 3]
    assert f"stage 1 epoch [4/4] loss {values[-1][1]:.6f}" in log


def test_without_distillation_nothing_is_told_of_it(root, tmp_path):
    run(root, tmp_path, "TRAINER.ANCHOROPT.KD_WEIGHT", "0.0", "OPTIM.MAX_EPOCH", "1")
    own = {tag for tag in events(tmp_path).Tags()["scalars"] if tag.startswith("anchoropt/")}
    own.discard("anchoropt/stage_1_loss")  # none if the anchors are in the cache
    assert own == {"anchoropt/cross_entropy", "anchoropt/position_entropy"}

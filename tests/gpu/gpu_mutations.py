"""Faults planted into the project that a run on a pretend GPU must find."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import train
from anchoropt_plugin.dassl_compat.data import DatasetWrapper
from anchoropt_plugin.encoders import text_tower
from anchoropt_plugin.method import anchor_learning, position
from anchoropt_plugin.training import stage_two
from anchoropt_plugin.training.without_data import without_data
from benchmarks.pretend_gpu import pretend_gpu
from dassl.engine import TRAINER_REGISTRY
from trainers.host import PromptTrainer

from .block_loop import waits_in_the_block_loop
from .short_runs import command

with pretend_gpu():
    pass

CLASSES = ["red circle", "blue star", "square"]
BATCH = {
    "img": torch.randn(4, 3, 32, 32),
    "label": torch.tensor([0, 1, 2, 0]),
    "domain": torch.zeros(4, dtype=torch.long),
    "impath": ["a.png", "b.png", "c.png", "d.png"],
    "index": torch.arange(4),
}


def train_briefly(folder, precision):
    """Both stages of CoOp, two steps each."""
    keys = ["OPTIM.MAX_EPOCH", "1", "TEST.NO_TEST", "True"]
    words = command(folder, folder, "CoOp", precision, keys=keys)
    cfg = train.setup_cfg(train.build_parser().parse_args(words))
    cfg.defrost()
    cfg.TRAINER.ANCHOROPT.DESCRIPTIONS = ""
    host = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
    without_data(host, CLASSES, [BATCH, BATCH])(cfg).train()


def replaced(owner, name, make):
    """A mutation: ``owner.name`` becomes what ``make`` returns for it."""
    return lambda patch: patch.setattr(owner, name, make(getattr(owner, name)))


def result(change):
    """The same function with its result changed."""
    return lambda own: lambda *args, **named: change(own(*args, **named))


def of_images(images, labels):
    """What ``parse_batch_train`` returns, on the devices given."""
    return lambda own: lambda self, batch: (batch["img"].to(images), batch["label"].to(labels))


REFUSED = {
    "images stay on the CPU": (
        "fp32",
        replaced(PromptTrainer, "parse_batch_train", of_images("cpu", "cuda")),
    ),
    "labels stay on the CPU": (
        "fp32",
        replaced(PromptTrainer, "parse_batch_train", of_images("cuda", "cpu")),
    ),
    "the position matrix is on the CPU": (
        "fp32",
        replaced(position.AnchorPositionModule, "draw", result(torch.Tensor.cpu)),
    ),
    "noise comes from a generator of the CPU": (
        "fp32",
        replaced(
            position,
            "_gumbel",
            lambda _: lambda x: torch.empty_like(x).exponential_(generator=torch.Generator()),
        ),
    ),
    "targets of stage 1 are on the CPU": (
        "fp32",
        replaced(anchor_learning, "_targets", result(lambda pair: [x.cpu() for x in pair])),
    ),
    "features of the anchor prompts are on the CPU": (
        "fp32",
        replaced(stage_two.AnchorOPT, "class_features", result(torch.Tensor.cpu)),
    ),
    "the distillation goes through numpy": (
        "fp32",
        replaced(stage_two, "distillation", result(lambda loss: loss.detach().numpy())),
    ),
    "the context is float32 where CLIP is in half precision": (
        "fp16",
        replaced(position.AnchorPositionModule, "forward", result(torch.Tensor.float)),
    ),
    "anchor prompts are float32 where CLIP is in half precision": (
        "fp16",
        replaced(text_tower.TextTower, "embed", result(torch.Tensor.float)),
    ),
}


def test_a_run_without_a_fault_passes(gpu, tmp_path):
    train_briefly(tmp_path, "fp16")
    assert gpu.launches and gpu.products[torch.float16]


@pytest.mark.parametrize("fault", REFUSED)
def test_a_mix_of_devices_or_dtypes_is_refused(fault, gpu, tmp_path, monkeypatch):
    precision, plant = REFUSED[fault]
    plant(monkeypatch)
    with pytest.raises((RuntimeError, TypeError), match=r"device|dtype|numpy"):
        train_briefly(tmp_path, precision)


def test_autocast_for_another_device_is_seen(gpu, tmp_path, monkeypatch):
    """Nothing fails then, but no product is in half precision."""
    own = torch.autocast
    train_briefly(tmp_path / "right", "amp")
    assert gpu.products[torch.float16]
    gpu.clear()
    monkeypatch.setattr(torch, "autocast", lambda device, *args, **named: own("cpu", **named))
    train_briefly(tmp_path / "wrong", "amp")
    assert gpu.products and not gpu.products[torch.float16]


def test_the_block_loop_never_waits(gpu, monkeypatch):
    """So a CUDA graph can capture it; a wait that is planted there is found."""
    assert not waits_in_the_block_loop(gpu)
    own = text_tower.attend

    def attend(*args):
        mixed = own(*args)
        assert mixed.isfinite().all()
        return mixed

    monkeypatch.setattr(text_tower, "attend", attend)
    assert waits_in_the_block_loop(gpu)


@pytest.mark.parametrize("fault", [False, True])
def test_cached_views_leave_the_generator_of_the_gpu_alone(fault, gpu, tmp_path, monkeypatch):
    words = command(tmp_path, tmp_path, "CoOp", "fp32", keys=["DATALOADER.CACHE_VIEWS", "2"])
    cfg = train.setup_cfg(train.build_parser().parse_args(words))
    if fault:
        seeds_all = SimpleNamespace(manual_seed=torch.manual_seed)
        monkeypatch.setattr(torch, "default_generator", seeds_all)
    monkeypatch.setattr(DatasetWrapper, "_view", lambda self, path: {"img": torch.rand(())})
    datum = type("Datum", (), {"label": 0, "domain": 0, "impath": ""})
    gpu.clear()
    DatasetWrapper(cfg, [datum], is_train=True)[0]
    assert bool(gpu.seeds) is fault

"""Look-alikes of public hosts beside a slow float64 computation without code of the project."""

from __future__ import annotations

import pytest
import torch
from clip.model import LayerNorm
from torch import nn

from anchoropt_plugin import anchoropt, extend_cfg
from dassl.config import get_cfg_default
from dassl.engine import TRAINER_REGISTRY

from .lookalikes import CE, HOSTS, KD, TEMPERATURE, Slow

KEYS = {"ANCHOR": "random", "POSITION": "soft", "POSITION_INIT_STD": 0.5, "ENSEMBLE": "always"}
KEYS |= {"PROMPT_CE_WEIGHT": CE, "KD_WEIGHT": KD, "KD_TEMPERATURE": TEMPERATURE}
KEYS |= {"POSITION_INIT": 1.0}


def build(host, folder, init_weights="", **keys):
    """The look-alike with AnchorOPT, its anchors drawn."""
    name = f"Like{host.__name__}"
    if name not in TRAINER_REGISTRY.registered_names():
        anchoropt(host, name=name)
    cfg = get_cfg_default()
    extend_cfg(cfg)
    cfg.OUTPUT_DIR, cfg.TRAINER.NAME = str(folder), name
    cfg.MODEL.INIT_WEIGHTS = init_weights
    cfg.OPTIM.NAME, cfg.OPTIM.LR, cfg.OPTIM.MAX_EPOCH, cfg.USE_CUDA = "sgd", 0.1, 3, False
    for key, value in {**KEYS, **keys}.items():
        cfg.TRAINER.ANCHOROPT[key] = value
    cfg.freeze()
    torch.manual_seed(2)
    trainer = TRAINER_REGISTRY.get(name)(cfg)
    trainer.anchoropt_stage_one()
    trainer.num_batches = 9
    return trainer


def assert_close(ours, theirs, what=""):
    error, size = (ours.double() - theirs).norm(), theirs.norm()
    assert error <= 1e-5 * size, (what, error / size)


@pytest.mark.parametrize("host", HOSTS, ids=lambda host: host.__name__)
def test_loss_gradients_and_test_outputs(host, tmp_path, monkeypatch):
    monkeypatch.setattr(LayerNorm, "forward", nn.LayerNorm.forward)  # OpenAI's rounds to float32
    trainer = build(host, tmp_path)
    for number, batch in enumerate(trainer.train_loader_x):
        trainer.set_model_mode("train")
        trainer.batch_idx = number
        slow = Slow(trainer)
        want = host.slow_loss(slow, batch["img"], batch["label"])
        summary = trainer.forward_backward(batch)
        assert_close(torch.tensor(summary["loss"]), want.detach())
        gradients = torch.autograd.grad(want, list(slow.learned.values()))
        parameters = dict(trainer.model.named_parameters())
        for name, gradient in zip(slow.learned, gradients, strict=True):
            assert_close(parameters[name].grad, gradient, name)
    seen = []
    trainer.evaluator.process = lambda output, label: seen.append(output)
    trainer.evaluator.evaluate = lambda: {"accuracy": 0.0}
    trainer.test()
    slow = Slow(trainer)
    logits = getattr(host, "slow_test_logits", host.slow_logits)
    for batch, output in zip(trainer.test_loader, seen, strict=True):
        with torch.no_grad():
            want = (logits(slow, batch["img"]) + slow.l_a(batch["img"])) / 2
        assert_close(output, want)

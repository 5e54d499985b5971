"""Learning rates of each epoch, against numbers computed by hand; optimisers by name."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from anchoropt_plugin import UserError
from anchoropt_plugin.files import checkpoints
from dassl.config import get_cfg_default
from dassl.optim import build_lr_scheduler, build_optimizer


def build(**options):
    cfg = get_cfg_default().OPTIM
    cfg.NAME, cfg.LR, cfg.MAX_EPOCH = "sgd", 0.1, 6
    for key, value in options.items():
        cfg[key] = value
    optimizer = build_optimizer(nn.Linear(2, 2), cfg)
    return optimizer, build_lr_scheduler(optimizer, cfg)


def rates(optimizer, scheduler, epochs=6):
    found = []
    for _ in range(epochs):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def cosine(epoch):
    return 0.1 * (1 + math.cos(math.pi * epoch / 6)) / 2


EXPECTED = [
    ({"LR_SCHEDULER": "cosine"}, [cosine(e) for e in range(6)]),
    (
        {
            "LR_SCHEDULER": "cosine",
            "WARMUP_EPOCH": 1,
            "WARMUP_TYPE": "constant",
            "WARMUP_CONS_LR": 1e-5,
        },
        [1e-5, *(cosine(e) for e in range(5))],  # one epoch late, so the last one is not 0
    ),
    (
        {"LR_SCHEDULER": "cosine", "WARMUP_EPOCH": 3, "WARMUP_TYPE": "linear"},
        [1e-5, 0.1 / 3, 0.2 / 3, 0.1, cosine(1), cosine(2)],
    ),
    ({"LR_SCHEDULER": "single_step", "STEPSIZE": (2,)}, [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]),
    ({"LR_SCHEDULER": "single_step", "STEPSIZE": (-1,)}, [0.1] * 6),
    ({"LR_SCHEDULER": "multi_step", "STEPSIZE": (1, 4)}, [0.1, 0.01, 0.01, 0.01, 0.001, 0.001]),
    (
        {"LR_SCHEDULER": "multi_step", "STEPSIZE": (1,), "WARMUP_EPOCH": 2, "GAMMA": 0.5},
        [1e-5, 0.05, 0.1, 0.05, 0.05, 0.05],
    ),
]


@pytest.mark.parametrize(("options", "expected"), EXPECTED)
def test_learning_rate_of_each_epoch(options, expected):
    assert rates(*build(**options)) == pytest.approx(expected)


@pytest.mark.parametrize("done", [1, 2, 4])
@pytest.mark.parametrize("pickled", [False, True], ids=["own", "published"])
@pytest.mark.parametrize("number", [1, 2, 6])
def test_a_saved_schedule_resumes(tmp_path, number, pickled, done):
    options, expected = EXPECTED[number]
    optimizer, scheduler = build(**options)
    rates(optimizer, scheduler, done)
    state = scheduler.state_dict()
    if pickled:  # as Dassl's own state_dict has it
        state["successor"] = scheduler.successor
    checkpoints.save(
        {"optimizer": optimizer.state_dict(), "scheduler": state}, tmp_path / "checkpoint"
    )
    loaded = checkpoints.load(tmp_path / "checkpoint")

    optimizer, scheduler = build(**options)
    optimizer.load_state_dict(loaded["optimizer"])
    scheduler.load_state_dict(loaded["scheduler"])
    assert rates(optimizer, scheduler, 6 - done) == pytest.approx(expected[done:])


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("sgd", torch.optim.SGD, {"momentum": 0.9, "nesterov": False}),
        ("adam", torch.optim.Adam, {"betas": (0.9, 0.999), "amsgrad": False}),
        ("amsgrad", torch.optim.Adam, {"amsgrad": True}),
        ("adamw", torch.optim.AdamW, {"betas": (0.9, 0.999)}),
        ("rmsprop", torch.optim.RMSprop, {"alpha": 0.99, "momentum": 0.9}),
        ("radam", torch.optim.RAdam, {"betas": (0.9, 0.999)}),
    ],
)
def test_optimizers(name, kind, options):
    optimizer, _ = build(NAME=name)
    assert type(optimizer) is kind
    assert optimizer.defaults.items() >= {**options, "weight_decay": 5e-4, "lr": 0.1}.items()


def test_staged_learning_rate(capsys):
    cfg = get_cfg_default().OPTIM
    cfg.STAGED_LR, cfg.NEW_LAYERS, cfg.LR = True, ("head",), 0.1
    model = nn.ModuleDict({"body": nn.Linear(2, 3), "head": nn.Linear(3, 1)})
    base, new = build_optimizer(model, cfg).param_groups
    assert (base["lr"], new["lr"]) == pytest.approx((0.01, 0.1))
    assert new["params"] == list(model["head"].parameters())
    assert not capsys.readouterr().out
    cfg.NEW_LAYERS = ("haed",)
    base, new = build_optimizer(model, cfg).param_groups
    assert base["lr"] == pytest.approx(0.01) and not new["params"]
    assert "OPTIM.STAGED_LR trains all of ModuleDict at OPTIM.LR x" in capsys.readouterr().out
    with pytest.raises(UserError, match="whole module"):
        build_optimizer(model.parameters(), cfg)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"NAME": "sdg"}, r"OPTIM\.NAME is 'sdg' \(did you mean 'sgd'\?\)"),
        ({"LR_SCHEDULER": "cosin"}, "did you mean 'cosine'"),
        ({"WARMUP_EPOCH": 1, "WARMUP_TYPE": "konstant"}, "did you mean 'constant'"),
        ({"STEPSIZE": (1.5,)}, "must be an int"),
    ],
)
def test_errors(options, message):
    with pytest.raises(UserError, match=message):
        build(**options)

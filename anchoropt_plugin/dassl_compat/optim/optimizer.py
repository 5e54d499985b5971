"""Optimisers by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from yacs.config import CfgNode

from ...errors import UserError
from ..utils.registry import check_availability


def _betas(cfg: CfgNode) -> dict[str, Any]:
    return {"betas": (cfg.ADAM_BETA1, cfg.ADAM_BETA2)}


_OPTIMIZERS: dict[str, tuple[Callable[..., Optimizer], Callable[[CfgNode], dict[str, Any]]]] = {
    "adam": (torch.optim.Adam, _betas),
    "adamw": (torch.optim.AdamW, _betas),
    "amsgrad": (torch.optim.Adam, lambda cfg: {**_betas(cfg), "amsgrad": True}),
    "radam": (torch.optim.RAdam, _betas),
    "rmsprop": (
        torch.optim.RMSprop,
        lambda cfg: {"momentum": cfg.MOMENTUM, "alpha": cfg.RMSPROP_ALPHA},
    ),
    "sgd": (
        torch.optim.SGD,
        lambda cfg: {
            "momentum": cfg.MOMENTUM,
            "dampening": cfg.SGD_DAMPNING,
            "nesterov": cfg.SGD_NESTEROV,
        },
    ),
}


def build_optimizer(
    model: nn.Module | Iterable[Any],
    optim_cfg: CfgNode,
    param_groups: Iterable[Any] | None = None,
) -> Optimizer:
    """Return the optimiser that ``optim_cfg.NAME`` names.

    Args:
        model: a module, or its parameters.
        optim_cfg: the section ``OPTIM``. With ``STAGED_LR``, the children of ``model`` that are
            not in ``NEW_LAYERS`` get the learning rate ``LR * BASE_LR_MULT``.
        param_groups: parameters or parameter groups that replace the model's.

    Raises:
        UserError: an unknown name, a setting that the optimiser refuses, or ``STAGED_LR`` with
            parameters instead of a module.
    """
    check_availability(optim_cfg.NAME, _OPTIMIZERS, "OPTIM.NAME")
    if param_groups is None:
        if optim_cfg.STAGED_LR:
            param_groups = _staged(model, optim_cfg)
        else:
            param_groups = model.parameters() if isinstance(model, nn.Module) else model
    optimizer, arguments = _OPTIMIZERS[optim_cfg.NAME]
    try:
        return optimizer(
            param_groups,
            lr=optim_cfg.LR,
            weight_decay=optim_cfg.WEIGHT_DECAY,
            **arguments(optim_cfg),
        )
    except ValueError as error:
        raise UserError(f"OPTIM of {optim_cfg.NAME}: {error}") from error


def _staged(model: nn.Module | Iterable[Any], optim_cfg: CfgNode) -> list[dict[str, Any]]:
    if not isinstance(model, nn.Module):
        raise UserError("OPTIM.STAGED_LR needs a whole module, not a list of parameters")
    new_layers = optim_cfg.NEW_LAYERS
    new_layers = [new_layers] if isinstance(new_layers, str) else new_layers
    base: list[nn.Parameter] = []
    new: list[nn.Parameter] = []
    for name, child in model.named_children():
        (new if name in new_layers else base).extend(child.parameters())
    if not new:
        print(
            "Note: no layer is in OPTIM.NEW_LAYERS, so OPTIM.STAGED_LR trains all of "
            f"{type(model).__name__} at OPTIM.LR x BASE_LR_MULT"
        )
    return [{"params": base, "lr": optim_cfg.LR * optim_cfg.BASE_LR_MULT}, {"params": new}]

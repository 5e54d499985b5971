"""The position logits in a host's optimiser: are they in it, and at which learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn


def holds(optimizer: Any, module: nn.Module) -> bool:
    """Whether ``optimizer`` holds a parameter of ``module``."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return any(id(parameter) in held for parameter in module.parameters())


def own_learning_rate(
    optimizer: Any, scheduler: Any, parameters: Sequence[nn.Parameter], lr: float
) -> bool:
    """Give ``parameters`` a group of their own, without weight decay, if ``optimizer`` holds them.

    The host has built its scheduler by now, so that (and the one a warm-up hands over to) learns
    the new rate too. During a warm-up at a constant rate the group follows it.

    Returns:
        Whether the optimiser holds them.
    """
    ids = {id(parameter) for parameter in parameters}
    for group in optimizer.param_groups:
        others = [p for p in group["params"] if id(p) not in ids]
        if len(others) == len(group["params"]):
            continue
        group["params"] = others
        own = {key: value for key, value in group.items() if key != "params"}
        own["weight_decay"] = 0.0
        if scheduler is not None:
            own["lr"], own["initial_lr"] = lr * group["lr"] / group["initial_lr"], lr
        else:
            own["lr"] = lr
        optimizer.add_param_group({"params": list(parameters), **own})
        while scheduler is not None:
            scheduler.base_lrs.append(lr)
            scheduler._last_lr.append(own["lr"] if hasattr(scheduler, "successor") else lr)
            scheduler = getattr(scheduler, "successor", None)
        return True
    return False

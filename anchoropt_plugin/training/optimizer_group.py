"""The position logits in the host's optimiser, in a parameter group of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn


def own_learning_rate(
    optimizer: Any, scheduler: Any, parameters: Sequence[nn.Parameter], lr: float
) -> None:
    """Move ``parameters`` to a group of their own, without weight decay, if they are optimised.

    The host has already built its scheduler, so the scheduler (and its successor after a warm-up)
    also gets the new learning rate. A warm-up at a constant rate applies to this group, too.
    """
    ids = {id(parameter) for parameter in parameters}
    for group in optimizer.param_groups:
        others = [p for p in group["params"] if id(p) not in ids]
        if len(others) == len(group["params"]):
            continue
        group["params"] = others
        own = {**group, "params": list(parameters), "weight_decay": 0.0, "lr": lr}
        if scheduler is not None:
            own["lr"], own["initial_lr"] = lr * group["lr"] / group["initial_lr"], lr
        optimizer.add_param_group(own)
        while scheduler is not None:
            scheduler.base_lrs.append(lr)
            scheduler._last_lr.append(own["lr"] if hasattr(scheduler, "successor") else lr)
            scheduler = getattr(scheduler, "successor", None)
        return

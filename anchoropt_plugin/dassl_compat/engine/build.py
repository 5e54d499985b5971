"""The registry of trainers."""

from __future__ import annotations

from typing import Any

from yacs.config import CfgNode

from ..utils.registry import Registry, check_availability

TRAINER_REGISTRY = Registry("TRAINER")


def build_trainer(cfg: CfgNode) -> Any:
    """Return the trainer registered as ``cfg.TRAINER.NAME``, built with ``cfg``.

    Raises:
        UserError: no trainer has this name; the message names the nearest one.
    """
    check_availability(cfg.TRAINER.NAME, TRAINER_REGISTRY.registered_names(), "TRAINER.NAME")
    if cfg.VERBOSE:
        print(f"Loading trainer: {cfg.TRAINER.NAME}")
    return TRAINER_REGISTRY.get(cfg.TRAINER.NAME)(cfg)

"""The registry of trainers."""

from __future__ import annotations

from typing import Any

from yacs.config import CfgNode

from ..utils.registry import Registry

TRAINER_REGISTRY = Registry("TRAINER")


def build_trainer(cfg: CfgNode) -> Any:
    """Return the trainer registered as ``cfg.TRAINER.NAME``, built with ``cfg``.

    Raises:
        UserError: no trainer has this name; the message names the nearest one.
    """
    return TRAINER_REGISTRY.chosen(cfg, "TRAINER.NAME")(cfg)

"""The configuration tree with Dassl's keys and default values."""

from __future__ import annotations

from yacs.config import CfgNode

from .defaults import get_cfg_default

__all__ = [
    "clean_cfg",
    "get_cfg_default",
]


def clean_cfg(cfg: CfgNode, trainer: str) -> None:
    """Delete the sections of ``cfg.TRAINER`` that belong to trainers other than ``trainer``."""
    for key in list(cfg.TRAINER):
        if key not in ("NAME", trainer.upper()):
            del cfg.TRAINER[key]

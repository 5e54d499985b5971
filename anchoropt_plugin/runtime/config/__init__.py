"""The configuration tree with Dassl's keys and default values."""

from __future__ import annotations

from yacs.config import CfgNode

from .check import check_values
from .defaults import get_cfg_default
from .merge import merge_dict, merge_file, merge_list
from .record import check_same_run, merge_record, write_record

__all__ = [
    "check_same_run",
    "check_values",
    "clean_cfg",
    "get_cfg_default",
    "merge_dict",
    "merge_file",
    "merge_list",
    "merge_record",
    "write_record",
]


def clean_cfg(cfg: CfgNode, trainer: str) -> None:
    """Drop the sections of ``cfg.TRAINER`` that belong to other trainers than ``trainer``."""
    for key in list(cfg.TRAINER):
        if key not in ("NAME", trainer.upper()):
            del cfg.TRAINER[key]

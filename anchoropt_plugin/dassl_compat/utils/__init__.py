"""The tools that trainers and training scripts import from ``dassl.utils``."""

from __future__ import annotations

from ...files.images import read_image
from ...files.readers import read_json, write_json
from ...process.randomness import set_random_seed
from .logger import Logger, log_to_stdout, setup_logger, withdraw_log
from .meters import AverageMeter, MetricMeter
from .registry import Registry, check_availability
from .tools import check_isfile, collect_env_info, listdir_nohidden, mkdir_if_missing, tolist_if_not
from .torchtools import (
    count_num_param,
    load_checkpoint,
    load_pretrained_weights,
    resume_from_checkpoint,
    save_checkpoint,
)

__all__ = [
    "AverageMeter",
    "Logger",
    "MetricMeter",
    "Registry",
    "check_availability",
    "check_isfile",
    "collect_env_info",
    "count_num_param",
    "listdir_nohidden",
    "load_checkpoint",
    "load_pretrained_weights",
    "log_to_stdout",
    "mkdir_if_missing",
    "read_image",
    "read_json",
    "resume_from_checkpoint",
    "save_checkpoint",
    "set_random_seed",
    "setup_logger",
    "tolist_if_not",
    "withdraw_log",
    "write_json",
]

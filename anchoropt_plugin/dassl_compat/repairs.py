"""Repair what newer torch and numpy break in an installed Dassl, and how it reads images."""

from __future__ import annotations

import builtins
import inspect
import logging
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from torch.optim.lr_scheduler import LRScheduler

from ..files.checkpoints import load
from ..files.images import read_image
from .optim.lr_scheduler import WarmupScheduler

_logger = logging.getLogger("anchoropt_plugin")


def repair_dassl() -> None:
    """Repair Dassl's warm-up schedulers, ``load_checkpoint`` and augmentations, if they are broken.

    The schedulers pass ``verbose``, an argument that torch 2.7 removed. ``load_checkpoint`` runs
    code from checkpoints before torch 2.6; since then it cannot read Dassl's own checkpoints,
    which hold a pickled scheduler. ``read_image`` becomes this package's: Dassl clips deep images
    to white, and does not turn a user's own images. Its augmentations use ``np.int``, one of the
    names of Python's types that numpy 1.24 removed; these names return. Each repair is logged as a
    warning, so that the user knows of it. A second call changes nothing.
    """
    if "verbose" not in inspect.signature(LRScheduler).parameters:
        _repair_warmup()
    _repair_load_checkpoint()
    _repair_read_image()
    _repair_numpy()


def _warmup_init(
    self: Any, optimizer: Any, successor: Any, warmup_epoch: int, last_epoch: int = -1, *_: Any
) -> None:
    self.successor = successor
    self.warmup_epoch = warmup_epoch
    LRScheduler.__init__(self, optimizer, last_epoch)


def _repair_warmup() -> None:
    import dassl.optim.lr_scheduler as schedulers

    base = schedulers._BaseWarmupScheduler
    if base.__init__ is _warmup_init:
        return
    base.__init__ = _warmup_init
    _logger.warning("repaired dassl.optim.lr_scheduler: torch no longer takes `verbose`")


def _repair_load_checkpoint() -> None:
    import dassl.optim.lr_scheduler as schedulers
    import dassl.utils.torchtools as torchtools

    broken = torchtools.load_checkpoint
    if broken is load:
        return
    _replace_everywhere("load_checkpoint", broken, load)
    # A safely read scheduler is plain data, so schedulers must be saved and restored as such.
    schedulers._BaseWarmupScheduler.state_dict = WarmupScheduler.state_dict
    schedulers._BaseWarmupScheduler.load_state_dict = WarmupScheduler.load_state_dict
    _logger.warning("repaired dassl.utils.load_checkpoint: it runs no code from checkpoints")


def _repair_read_image() -> None:
    import dassl.utils

    broken = getattr(dassl.utils, "read_image", read_image)
    if broken is not read_image:
        _replace_everywhere("read_image", broken, read_image)
        _logger.warning("repaired dassl.utils.read_image: it clipped images of 16 bits")


def _repair_numpy() -> None:
    removed = [name for name in _NUMPY_NAMES if name not in vars(np)]
    for name in removed:
        setattr(np, name, getattr(builtins, name))
    if removed:
        _logger.warning("repaired numpy for dassl: it no longer has np.%s", ", np.".join(removed))


_NUMPY_NAMES = ("bool", "int", "float", "complex", "object", "str")


def _replace_everywhere(name: str, old: Callable[..., Any], new: Callable[..., Any]) -> None:
    """Rebind ``name`` in every imported module where ``name`` is ``old``."""
    for module in list(sys.modules.values()):
        if vars(module).get(name) is old:
            setattr(module, name, new)

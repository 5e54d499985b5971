"""Checks for a train.py, to run before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import UserError
from .two_stages import TwoStages


def check_anchoropt(cfg: Any, trainer: type, training: bool = True) -> None:
    """Check that ``cfg.TRAINER.ANCHOROPT`` fits the trainer, and that its descriptions exist.

    Args:
        cfg: the configuration of the run.
        trainer: the class that is registered as ``cfg.TRAINER.NAME``.
        training: whether the run trains; a test reads no descriptions.

    Raises:
        UserError: USE_ANCHOROPT with a plain host trainer, or a missing file of descriptions.
    """
    name, settings = cfg.TRAINER.NAME, cfg.TRAINER.ANCHOROPT
    if not issubclass(trainer, TwoStages):
        if settings.USE_ANCHOROPT:
            raise UserError(
                f"TRAINER.ANCHOROPT.USE_ANCHOROPT is set, but --trainer {name} runs without "
                f"AnchorOPT: give --trainer {name}_AnchorOPT"
            )
        return
    file = settings.DESCRIPTIONS
    if training and file and not Path(file).expanduser().is_file():
        raise UserError(f"TRAINER.ANCHOROPT.DESCRIPTIONS {file} is not a file: give its path")

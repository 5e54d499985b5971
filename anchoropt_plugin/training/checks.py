"""Checks for a train.py, to run before anything is written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from .released_files import anchors_file
from .two_stages import SUFFIX, TwoStages

STAGE_ONE_TRAINER = re.compile(r"(.*?)_?pretrain_?anchors?", re.IGNORECASE)
"""Names of trainers of stage 1 alone: the released code has CoOp_Pretrain_Anchor."""


def check_trainer_name(name: str, registered: Sequence[str]) -> None:
    """Check that ``name`` is not that of a trainer of stage 1 alone.

    Raises:
        UserError: it is; the message says how to learn anchors, and how to test them.

    >>> check_trainer_name("CoOp_AnchorOPT", ["CoOp", "CoOp_AnchorOPT"])
    """
    match = STAGE_ONE_TRAINER.fullmatch(name)
    if match and name not in registered:
        hosts = {host.lower(): host for host in registered if host + SUFFIX in registered}
        host = hosts.get(match[1].lower(), "CoOp")
        raise UserError(
            f"--trainer {name}: stage 1 runs inside --trainer {host}{SUFFIX}, for "
            "TRAINER.ANCHOROPT.ANCHOR_EPOCHS epochs, and the anchors are written to the folder "
            "anchor_prompt_learner in --output-dir; to test the anchors alone, add "
            "TRAINER.ANCHOROPT.ENSEMBLE anchors"
        )


def check_anchoropt(cfg: Any, trainer: type, training: bool = True) -> None:
    """Check that ``cfg.TRAINER.ANCHOROPT`` fits the trainer, and that the files it names exist.

    Args:
        cfg: the configuration of the run.
        trainer: the class that is registered as ``cfg.TRAINER.NAME``.
        training: whether the run trains; a test reads no descriptions.

    Raises:
        UserError: USE_ANCHOROPT with a plain host trainer, or a missing file of descriptions or
            anchors.
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
    if training and settings.ANCHOR_WEIGHTS:
        weights = anchors_file(settings.ANCHOR_WEIGHTS, cfg.DATASET.NAME)
        if not weights.is_file():
            raise UserError(
                f"TRAINER.ANCHOROPT.ANCHOR_WEIGHTS {weights} does not exist: give a file of "
                "anchors, or the released folder anchor_weights"
            )


def check_anchor_sources(trainer: Any) -> None:
    """Check that anchors or descriptions fit a trainer, before its run writes anything.

    Raises:
        UserError: they do not, or the run to resume had others; a trainer without AnchorOPT has
            none.
    """
    if isinstance(trainer, TwoStages):
        trainer.anchoropt_sources()

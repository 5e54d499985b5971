"""The choice of the best epoch, and the end of a training by it, need validation images."""

from __future__ import annotations

import math
from typing import Any

from ..errors import UserError


def check_split(trainer: Any) -> None:
    """Check that a test on validation images (``TEST.SPLIT val``) has some.

    Args:
        trainer: a trainer with ``cfg`` and ``val_loader``.

    Raises:
        UserError: there are none.
    """
    cfg = trainer.cfg
    if cfg.TEST.SPLIT == "val" and trainer.val_loader is None:
        raise UserError(
            f"TEST.SPLIT is val, but {cfg.DATASET.NAME} has no validation images: add a part val, "
            "or set it to test"
        )


def check_validation(trainer: Any) -> None:
    """Check that a run with ``TEST.FINAL_MODEL best_val`` or ``TEST.SPLIT val`` has such images.

    A run with ``TRAIN.PATIENCE`` must be such a run.

    Dassl validates on the test images of a data set without any, and so chooses the epoch that is
    best on the test images.

    Args:
        trainer: a trainer with ``cfg`` and ``val_loader``.

    Raises:
        UserError: there are none, or the run does not validate.
    """
    cfg = trainer.cfg
    if not cfg.TEST.NO_TEST:
        check_split(trainer)
    chooses = cfg.TEST.FINAL_MODEL == "best_val" and not cfg.TEST.NO_TEST
    if cfg.TRAIN.PATIENCE > 0 and not chooses:
        raise UserError(
            f"TRAIN.PATIENCE is {cfg.TRAIN.PATIENCE}, but the run does not validate its epochs: "
            "set TEST.FINAL_MODEL to best_val and TEST.NO_TEST to False, or TRAIN.PATIENCE to 0"
        )
    if chooses and trainer.val_loader is None:
        raise UserError(
            f"TEST.FINAL_MODEL is best_val, but {cfg.DATASET.NAME} has no validation images, and "
            "the test images must not choose the epoch: add a part val, or set TEST.FINAL_MODEL to "
            "last_step"
        )


class EarlyStop:
    """Tells when the validation has not improved for ``patience`` epochs; 0 is for ever.

    >>> stop = EarlyStop(2)
    >>> stop.note(50.0, epoch=1)
    >>> stop.note(50.0, epoch=2)  # not better
    >>> stop.is_due(2), stop.is_due(3)
    (False, True)
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.best_result, self.best_epoch = -math.inf, 0

    def note(self, best_result: float, epoch: int) -> None:
        """Note the best result of the epochs until ``epoch``."""
        if best_result > self.best_result:
            self.best_result, self.best_epoch = best_result, epoch

    def is_due(self, epochs: int) -> bool:
        """Return whether a training of ``epochs`` epochs ends now.

        If no best result is known, as after resuming before the best epoch, it goes on: the run
        did not stop here the first time.
        """
        return self.best_result > -math.inf and 0 < self.patience <= epochs - self.best_epoch

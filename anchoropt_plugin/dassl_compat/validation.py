"""The choice of the best epoch needs validation images of its own."""

from __future__ import annotations

from typing import Any

from ..errors import UserError


def check_validation(trainer: Any) -> None:
    """Check that a run with ``TEST.FINAL_MODEL best_val`` has validation images.

    Dassl validates on the test images of a data set without any, and so chooses the epoch that is
    best on the test images.

    Args:
        trainer: a trainer with ``cfg`` and ``val_loader``.

    Raises:
        UserError: there are none.
    """
    cfg = trainer.cfg
    chooses = cfg.TEST.FINAL_MODEL == "best_val" and not cfg.TEST.NO_TEST
    if chooses and trainer.val_loader is None:
        raise UserError(
            f"TEST.FINAL_MODEL is best_val, but {cfg.DATASET.NAME} has no validation images, and "
            "the test images must not choose the epoch: add a part val, or set TEST.FINAL_MODEL to "
            "last_step"
        )

"""Numbers that are not finite end a run, in one line that names the step and what is left of it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def checked_step(trainer: Any, step: Callable[..., Any], *batch: Any) -> Any:
    """Train on a batch with ``step``, and see to it that what comes of it is finite.

    Steps that amp leaves out as their gradients overflow are counted; the last one of an epoch
    prints how many there were. One such call in another does nothing of its own.

    Args:
        trainer: a Dassl trainer.
        step: its ``forward_backward``.
        batch: what it takes.

    Returns:
        What ``step`` returns.

    Raises:
        FloatingPointError: a loss is not finite, or a weight no longer is. The message names the
            step, the pictures of its batch and the last checkpoint, which is good.
    """
    if getattr(trainer, "is_in_checked_step", False):
        return step(*batch)
    trainer.is_in_checked_step = True
    scale = _scale(trainer)
    try:
        summary = step(*batch)
        _check_losses(summary)
    except FloatingPointError as error:
        raise FloatingPointError(_line(trainer, batch, str(error))) from error
    except (ArithmeticError, RuntimeError, ValueError) as error:
        broken = _broken_weight(trainer)  # which no assignment can be solved for, for example
        if not broken:
            raise
        raise FloatingPointError(_line(trainer, batch, f"{broken} is not finite")) from error
    finally:
        trainer.is_in_checked_step = False
    _count_left_out(trainer, scale)
    return summary


def check_weights(trainer: Any) -> None:
    """Check what is about to be tested and saved.

    Raises:
        FloatingPointError: a weight is not finite.
    """
    broken = _broken_weight(trainer)
    if broken:
        raise FloatingPointError(
            f"after epoch {trainer.epoch + 1} {broken} is not finite; {_last_good(trainer)}"
        )


def finite(loss: Tensor) -> Tensor:
    """``loss``, a scalar.

    Raises:
        FloatingPointError: it is infinite or NaN.

    >>> finite(torch.tensor(1.5))
    tensor(1.5000)
    """
    if not torch.isfinite(loss).all():
        raise FloatingPointError(f"the loss is {loss.detach().float().item()}")
    return loss


def _check_losses(summary: Mapping[str, Any] | None) -> None:
    for name, value in (summary or {}).items():
        is_number = isinstance(value, (int, float)) or (
            isinstance(value, Tensor) and value.numel() == 1
        )
        if "loss" in name and is_number and not math.isfinite(value):
            raise FloatingPointError(f"{name} is {float(value)}")


def _broken_weight(trainer: Any) -> str:
    """The first weight that is not finite, with the name of its model, or nothing."""
    for model in trainer.get_model_names():
        for name, weight in trainer._models[model].named_parameters():
            if not torch.isfinite(weight).all():
                return f"{name} of {model}"
    return ""


def _line(trainer: Any, batch: Sequence[Any], fault: str) -> str:
    step = f"epoch {trainer.epoch + 1}, batch {trainer.batch_idx + 1} of {trainer.num_batches}"
    pictures = batch[0].get("impath", ()) if batch and isinstance(batch[0], Mapping) else ()
    shown = ""
    if pictures:
        folder = os.path.commonpath([os.path.dirname(path) for path in pictures])  # noqa: PTH120
        names = ", ".join(os.path.relpath(path, folder or ".") for path in pictures)
        shown = f"; its pictures are, in {folder or '.'}: {names}"
    return f"{step}: {fault}; {_last_good(trainer)}{shown}"


def _last_good(trainer: Any) -> str:
    for directory in filter(None, (trainer.output_dir, trainer.cfg.RESUME)):
        noted = Path(directory, trainer.get_model_names()[0], "checkpoint")
        if noted.is_file():
            name = noted.read_text(encoding="utf-8", errors="replace").strip()
            return f"the last good checkpoint is {noted.with_name(name)}"
    return "no checkpoint was written yet"


def _scale(trainer: Any) -> float:
    scaler = getattr(trainer, "scaler", None)
    return float(scaler.get_scale()) if scaler is not None and scaler.is_enabled() else 0.0


def _count_left_out(trainer: Any, scale: float) -> None:
    if not scale:  # without amp none is
        return
    trainer.steps_left_out = getattr(trainer, "steps_left_out", 0) + (_scale(trainer) < scale)
    if trainer.batch_idx + 1 == trainer.num_batches:
        if trainer.steps_left_out:
            print(
                f"epoch {trainer.epoch + 1}: amp left out {trainer.steps_left_out} of "
                f"{trainer.num_batches} steps, as their gradients overflowed"
            )
        trainer.steps_left_out = 0

"""Stop a run at the first number that is not finite, with one line that names the step.

Half precision, or a learning rate that is too high, turns losses and weights into infinities.
Without these checks a run would train on and overwrite its last good checkpoint.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError


@contextlib.contextmanager
def training_errors() -> Iterator[None]:
    """Turn errors that a config key can fix into a ``UserError`` that names the key.

    Raises:
        UserError: a number that is not finite, or a lost worker process of a ``DataLoader``.

    >>> with training_errors():
    ...     raise FloatingPointError("the loss is nan")
    Traceback (most recent call last):
        ...
    anchoropt_plugin.errors.UserError: the loss is nan (try PREC fp32, or a lower OPTIM.LR)
    """
    try:
        yield
    except FloatingPointError as error:
        raise UserError(f"{error} (try PREC fp32, or a lower OPTIM.LR)") from error
    except RuntimeError as error:
        # torch raises this from a signal handler, in the middle of any statement.
        if not str(error).startswith("DataLoader worker"):
            raise
        raise UserError(
            f"{' '.join(str(error).split())} If memory ran out, lower DATALOADER.NUM_WORKERS; "
            "to resume from the last checkpoint, run the same command again"
        ) from error


def checked_step(trainer: Any, step: Callable[..., Any], *batch: Any) -> Any:
    """Train on a batch with ``step``, and check that losses and weights stay finite.

    The last step of an epoch prints how many steps amp skipped because gradients overflowed.
    Nested calls are ignored.

    Args:
        trainer: a Dassl trainer.
        step: the trainer's ``forward_backward``.
        batch: the arguments of ``step``.

    Returns:
        The return value of ``step``.

    Raises:
        FloatingPointError: a loss or a weight that is not finite. The message names the step, the
            images of the batch and the last checkpoint, which is good.
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
        broken = _broken_weight(trainer)  # an infinite weight breaks the Hungarian step, say
        if not broken:
            raise
        raise FloatingPointError(_line(trainer, batch, f"{broken} is not finite")) from error
    finally:
        trainer.is_in_checked_step = False
    _count_skipped_steps(trainer, scale)
    return summary


def check_weights(trainer: Any) -> None:
    """Check all weights of a trainer before they are tested and saved.

    Raises:
        FloatingPointError: a weight that is not finite.
    """
    broken = _broken_weight(trainer)
    if broken:
        raise FloatingPointError(
            f"after epoch {trainer.epoch + 1} {broken} is not finite; {_last_good(trainer)}"
        )


def finite(loss: Tensor) -> Tensor:
    """Return ``loss``, a scalar.

    Raises:
        FloatingPointError: a loss that is infinite or NaN.

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
    """Return the first weight that is not finite, with its model's name, or an empty string."""
    for model in trainer.get_model_names():
        for name, weight in trainer._models[model].named_parameters():
            if not torch.isfinite(weight).all():
                return f"{name} of {model}"
    return ""


def _line(trainer: Any, batch: Sequence[Any], fault: str) -> str:
    step = f"epoch {trainer.epoch + 1}, batch {trainer.batch_idx + 1} of {trainer.num_batches}"
    paths = batch[0].get("impath", ()) if batch and isinstance(batch[0], Mapping) else ()
    images = ""
    if paths:
        folder = os.path.commonpath([os.path.dirname(path) for path in paths])  # noqa: PTH120
        names = ", ".join(os.path.relpath(path, folder or ".") for path in paths)
        images = f"; images of the batch, in {folder or '.'}: {names}"
    return f"{step}: {fault}; {_last_good(trainer)}{images}"


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


def _count_skipped_steps(trainer: Any, scale: float) -> None:
    if not scale:  # only amp skips steps
        return
    # The scaler lowers its scale whenever it skips a step.
    trainer.skipped_steps = getattr(trainer, "skipped_steps", 0) + (_scale(trainer) < scale)
    if trainer.batch_idx + 1 == trainer.num_batches:
        if trainer.skipped_steps:
            print(
                f"epoch {trainer.epoch + 1}: amp skipped {trainer.skipped_steps} of "
                f"{trainer.num_batches} steps because their gradients overflowed"
            )
        trainer.skipped_steps = 0

"""Stop a run at the first number that is not finite, with one line that names the step.

Half precision, or a learning rate that is too high, turns losses and weights into infinities.
Without these checks a run would train on and overwrite its last good checkpoint. The host does not
wait for the losses of a GPU: it reads them at the end of the next step, before any checkpoint.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..process.late_checks import LateNumber, settle_all


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
            f"{' '.join(str(error).split())} To resume from the last checkpoint, run the "
            "same command again; if memory ran out, start again with a lower "
            "DATALOADER.NUM_WORKERS in another --output-dir"
        ) from error


@dataclass
class _Step:
    """A step of the training, its images, and the losses that the host has not read yet."""

    place: str
    paths: Sequence[str]
    unread: list[tuple[str, LateNumber]] = field(default_factory=list)

    @classmethod
    def present(cls, trainer: Any, batch: Sequence[Any]) -> _Step:
        numbers = (getattr(trainer, name, 0) for name in ("epoch", "batch_idx", "num_batches"))
        epoch, batch_idx, num_batches = numbers
        paths = batch[0].get("impath", ()) if batch and isinstance(batch[0], Mapping) else ()
        return cls(f"epoch {epoch + 1}, batch {batch_idx + 1} of {num_batches}", paths)

    def fault(self) -> str:
        """Read the losses; return the message of one that is not finite, or an empty string."""
        unread, self.unread = self.unread, []
        faults = (_fault(message, float(value)) for message, value in unread)
        return next(filter(None, faults), "")

    def line(self, trainer: Any, fault: str) -> str:
        images = ""
        if self.paths:
            folder = os.path.commonpath([os.path.dirname(path) for path in self.paths])  # noqa: PTH120
            names = ", ".join(os.path.relpath(path, folder or ".") for path in self.paths)
            images = f"; images of the batch, in {folder or '.'}: {names}"
        return f"{self.place}: {fault}; {_last_good(trainer)}{images}"


class _Checks:
    """The checks of one trainer.

    Attributes:
        present: the step that is under way, if any.
        previous: a step whose losses the host may not have read yet.
        scales: amp's scale before each step of the epoch, and after the last one.
    """

    def __init__(self) -> None:
        self.present: _Step | None = None
        self.previous: _Step | None = None
        self.scales: list[LateNumber] = []

    @classmethod
    def of(cls, trainer: Any) -> _Checks:
        if not hasattr(trainer, "finite_checks"):
            trainer.finite_checks = cls()
        return trainer.finite_checks

    def settle(self, trainer: Any) -> None:
        """Read the losses of the previous step."""
        previous, self.previous = self.previous, None
        fault = previous.fault() if previous else ""
        if previous and fault:
            raise FloatingPointError(previous.line(trainer, fault))


def checked_step(trainer: Any, step: Callable[..., Any], *batch: Any) -> Any:
    """Train on a batch with ``step``, and check that losses and weights stay finite.

    Losses on a GPU are read at the end of the next step, or by ``check_weights``. The last step of
    an epoch prints how many steps amp skipped because gradients overflowed. Nested calls are
    ignored.

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
    checks = _Checks.of(trainer)
    if checks.present is not None:
        return step(*batch)
    present = checks.present = _Step.present(trainer, batch)
    if not checks.scales:
        _note_scale(trainer, checks.scales)
    try:
        summary = step(*batch)
        for name, value in (summary or {}).items():
            if "loss" in name and _is_number(value):
                _expect_finite(present, value, f"{name} is {{}}")
    except (ArithmeticError, RuntimeError, ValueError) as error:
        checks.settle(trainer)
        fault = present.fault()
        if not fault and isinstance(error, FloatingPointError):
            fault = str(error)
        if not fault:  # an infinite weight breaks the Hungarian step, say
            broken = _broken_weight(trainer)
            if not broken:
                raise
            fault = f"{broken} is not finite"
        raise FloatingPointError(present.line(trainer, fault)) from error
    finally:
        checks.present = None
    checks.settle(trainer)
    checks.previous = present
    _count_skipped_steps(trainer, checks)
    return summary


def check_weights(trainer: Any) -> None:
    """Check all weights of a trainer, and all losses, before weights are tested and saved.

    Raises:
        FloatingPointError: a loss or a weight that is not finite.
    """
    _Checks.of(trainer).settle(trainer)
    settle_all()
    broken = _broken_weight(trainer)
    if broken:
        raise FloatingPointError(
            f"after epoch {trainer.epoch + 1} {broken} is not finite; {_last_good(trainer)}"
        )


def expect_finite(trainer: Any, loss: Tensor, message: str) -> None:
    """Check that ``loss`` is finite: at once on the CPU, at the end of the next step on a GPU.

    Args:
        trainer: a Dassl trainer.
        loss: a tensor; outside of a checked step the check is made at once.
        message: of the error; braces in it get the value of ``loss``.

    Raises:
        FloatingPointError: a loss that is infinite or NaN.

    >>> from types import SimpleNamespace
    >>> expect_finite(SimpleNamespace(), torch.tensor(torch.inf), "the loss is {}")
    Traceback (most recent call last):
        ...
    FloatingPointError: the loss is inf
    """
    _expect_finite(_Checks.of(trainer).present, loss, message)


def _expect_finite(step: _Step | None, loss: Any, message: str) -> None:
    if isinstance(loss, Tensor):
        loss = loss.detach() if loss.numel() == 1 else loss.detach().double().sum()
        if step is not None and loss.is_cuda:
            step.unread.append((message, LateNumber(loss)))
            return
    fault = _fault(message, float(loss))
    if fault:
        raise FloatingPointError(fault)


def _fault(message: str, loss: float) -> str:
    return "" if math.isfinite(loss) else message.format(loss)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1)


def _broken_weight(trainer: Any) -> str:
    """Return the first weight that is not finite, with its model's name, or an empty string."""
    for model in trainer.get_model_names():
        for name, weight in trainer._models[model].named_parameters():
            if not torch.isfinite(weight).all():
                return f"{name} of {model}"
    return ""


def _last_good(trainer: Any) -> str:
    for directory in filter(None, (trainer.output_dir, trainer.cfg.RESUME)):
        noted = Path(directory, trainer.get_model_names()[0], "checkpoint")
        if noted.is_file():
            name = noted.read_text(encoding="utf-8", errors="replace").strip()
            return f"the last good checkpoint is {noted.with_name(name)}"
    return "no checkpoint was written yet"


def _note_scale(trainer: Any, scales: list[LateNumber]) -> None:
    scaler = getattr(trainer, "scaler", None)
    if scaler is not None and scaler.is_enabled():
        # get_scale would wait for the GPU.
        scales.append(LateNumber(scaler.scale(torch.ones((), device=trainer.device))))


def _count_skipped_steps(trainer: Any, checks: _Checks) -> None:
    if not checks.scales:  # only amp skips steps
        return
    _note_scale(trainer, checks.scales)
    if trainer.batch_idx + 1 == trainer.num_batches:
        scales, checks.scales = list(map(float, checks.scales)), []
        # The scaler lowers its scale whenever it skips a step.
        skipped = sum(after < before for before, after in pairwise(scales))
        if skipped:
            print(
                f"epoch {trainer.epoch + 1}: amp skipped {skipped} of "
                f"{trainer.num_batches} steps because their gradients overflowed"
            )

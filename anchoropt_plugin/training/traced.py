"""A model as a program that a tracer recorded, compared with the model on a larger batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError

TOLERANCE = 1e-4
"""Largest difference of a probability."""

Classifier = Callable[[Tensor], Tensor]
"""Images (B, 3, R, R) → probabilities (B, C)."""


def traced(
    model: nn.Module, tested: Classifier, images: Tensor, tolerance: float = TOLERANCE
) -> Any:
    """Return ``model`` as TorchScript for any batch.

    Args:
        model: images (B, 3, R, R) → probabilities (B, C).
        tested: the probabilities that the program must give.
        images: a batch of three or more; the first two are traced.
        tolerance: largest difference of a probability.

    Raises:
        UserError: the program gives other probabilities.
    """
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # what no image changes becomes a constant: that is meant
        program = torch.jit.trace(model, images[:2], check_trace=False)  # below, on more
    check_program(program, tested, images, tolerance)
    return program


@torch.no_grad()
def check_program(
    program: Classifier, tested: Classifier, images: Tensor, tolerance: float = TOLERANCE
) -> None:
    """Check that a program gives the probabilities of ``tested``.

    Raises:
        UserError: the program gives others, or cannot take this batch.
    """
    wanted = tested(images)
    try:
        found = program(images)
    except Exception as error:  # TorchScript and onnxruntime raise classes of their own
        raise UserError(_advice(one_line(error))) from error
    if found.shape != wanted.shape:
        raise UserError(_advice(f"{len(found)} rows for {len(wanted)} images"))
    difference = float((found - wanted).abs().max())
    if not difference <= tolerance:  # NaN counts as different
        raise UserError(_advice(f"a probability differs by {difference:.1e}"))


def _advice(reason: str) -> str:
    return (
        f"the exported model does not give the probabilities of a test ({reason}): the host's "
        "forward must treat all images of a batch at once, with operators of torch alone"
    )


def one_line(error: Exception) -> str:
    """Return the message of an exception in one short line."""
    return " ".join(str(error).split())[:200] or type(error).__name__

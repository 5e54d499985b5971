"""The relaxations of the position matrix: from scores to a matrix that has a gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

SINKHORN_ITERATIONS = 20


class Relaxation(NamedTuple):
    """How scores (N, N) and a temperature become a matrix (N, N) of the same dtype.

    Attributes:
        soft: the relaxed matrix.
        used: the matrix that is used: the limit of ``soft`` as the temperature falls, with the
            gradient of ``soft`` (straight-through), or ``soft`` itself.
        noisy: whether Gumbel noise is added to the logits while training.
    """

    soft: Callable[[Tensor, float], Tensor]
    used: Callable[[Tensor, float], Tensor]
    noisy: bool


class _StraightThrough(torch.autograd.Function):
    """The hard matrix forward, to the last bit; the gradient of the soft one backward."""

    @staticmethod
    def forward(ctx: Any, hard: Tensor, soft: Tensor) -> Tensor:
        return hard.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, grad


def _softmax_rows(scores: Tensor, temperature: float) -> Tensor:
    return (scores / temperature).softmax(-1)


def _one_hot_rows(scores: Tensor, temperature: float) -> Tensor:
    hard = torch.zeros_like(scores).scatter_(-1, scores.argmax(-1, keepdim=True), 1.0)
    used: Tensor = _StraightThrough.apply(hard, _softmax_rows(scores, temperature))
    return used


def _sinkhorn(scores: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Normalise rows and columns in turn, in log space, to a nearly doubly stochastic matrix.

    Returns:
        The matrix, and the normalised matrices on the way to it, for the gradient.
    """
    steps = []
    for number in range(2 * SINKHORN_ITERATIONS):
        axis = (-1, -2)[number % 2]
        top = scores.max(axis, keepdims=True)
        scores = scores - top - np.log(np.exp(scores - top).sum(axis, keepdims=True))
        steps.append(np.exp(scores))
    return steps[-1], steps


def _sinkhorn_gradient(gradient: np.ndarray, steps: list[np.ndarray]) -> np.ndarray:
    """Return the gradient of the scores, given that of the matrix: ``_sinkhorn`` backwards."""
    gradient = gradient * steps[-1]
    for number, step in reversed(list(enumerate(steps))):
        gradient = gradient - step * gradient.sum((-1, -2)[number % 2], keepdims=True)
    return gradient


def _permutation(scores: np.ndarray) -> np.ndarray:
    """Return the permutation matrix with the largest summed score (Hungarian algorithm)."""
    if not np.isfinite(scores).all():
        raise FloatingPointError("the position logits are not finite")
    rows, columns = linear_sum_assignment(scores.astype(np.float64), maximize=True)
    hard = np.zeros_like(scores)
    hard[rows, columns] = 1.0
    return hard


class _Sinkhorn(torch.autograd.Function):
    """The Sinkhorn matrix, or the permutation with its gradient, computed in numpy.

    On a GPU, 20 rounds of tiny operators would take longer than the rest of the text branch.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, temperature: float, is_hard: bool) -> Tensor:
        at_host = scores.detach().cpu().numpy()
        hard = _permutation(at_host) if is_hard else None  # first: it checks for NaN
        soft, ctx.steps = _sinkhorn(at_host / np.asarray(temperature, at_host.dtype))
        ctx.temperature = temperature
        used = torch.from_numpy(soft if hard is None else hard)
        return used.to(scores.device, non_blocking=True)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        gradient = _sinkhorn_gradient(grad.cpu().numpy(), ctx.steps)
        of_scores = torch.from_numpy(gradient / np.asarray(ctx.temperature, gradient.dtype))
        return of_scores.to(grad.device, non_blocking=True), None, None


def _doubly_stochastic(scores: Tensor, temperature: float) -> Tensor:
    soft: Tensor = _Sinkhorn.apply(scores, temperature, False)
    return soft


def _one_token_a_slot(scores: Tensor, temperature: float) -> Tensor:
    used: Tensor = _Sinkhorn.apply(scores, temperature, True)
    return used


def _identity(scores: Tensor, temperature: float) -> Tensor:
    hard = torch.eye(len(scores), dtype=scores.dtype, device=scores.device)
    # The logits have a gradient, zero: some hosts look at the gradient of each parameter.
    used: Tensor = _StraightThrough.apply(hard, 0 * scores)
    return used


# Checkpoints hold the place of a name in this order: a new one goes to the end.
RELAXATIONS: dict[str, Relaxation] = {
    # Independent rows, as in the released code: a token may be lost or repeated.
    "gumbel": Relaxation(_softmax_rows, _one_hot_rows, noisy=True),
    # Mena et al., "Learning Latent Permutations with Gumbel-Sinkhorn Networks" (ICLR 2018), with a
    # Hungarian hard step: every token is kept exactly once.
    "sinkhorn": Relaxation(_doubly_stochastic, _one_token_a_slot, noisy=True),
    # A mixture of tokens in every slot.
    "soft": Relaxation(_softmax_rows, _softmax_rows, noisy=False),
    # The context, then the anchors: the control of the ablation.
    "identity": Relaxation(_identity, _identity, noisy=False),
}

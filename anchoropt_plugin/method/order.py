"""The position matrix in words: which token is in which slot of the context."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

UNCHANGED = "unchanged: context, then anchors"


def token_names(n_context: int, n_anchors: int) -> list[str]:
    """Return short names of the tokens in the columns of a position matrix.

    >>> token_names(2, 1)
    ['v1', 'v2', 'A1']
    """
    context = [f"v{number + 1}" for number in range(n_context)]
    return context + [f"A{number + 1}" for number in range(n_anchors)]


def in_words(matrix: Tensor, n_context: int) -> str:
    """Return the order of the tokens that a position matrix gives, in one line.

    Args:
        matrix: P (M + K, M + K), non-negative; row i gives the tokens in slot i.
        n_context: number M of tokens of the context, called v1 … vM; the others are A1 … AK.

    Returns:
        An order, if every row is one token. If the order is no permutation, the line also names
        the tokens that are repeated or lost. For a mixture of tokens it gives the nearest order
        and the share of the weight that this order has: the mean over the slots.

    >>> in_words(torch.eye(3), 2)
    'unchanged: context, then anchors'
    >>> in_words(torch.eye(3)[[0, 2, 1]], 2)
    'order: v1 A1 v2'
    >>> in_words(torch.eye(3)[[0, 0, 2]], 2)
    'order: v1 v1 A1 (no permutation: v1 2 times, v2 lost)'
    >>> in_words(torch.tensor([[0.75, 0.25], [0.25, 0.75]]), 1)
    'a mixture of tokens in each slot: the nearest order, v1 A1, has 75% of the weight (a \
permutation: 100%, an even mixture: 50%)'
    """
    matrix = matrix.detach().double().cpu()
    names = token_names(n_context, len(matrix) - n_context)
    if not torch.equal(matrix, _one_hot(matrix.argmax(-1).tolist()).to(matrix)):
        rows, columns = linear_sum_assignment(matrix.numpy(), maximize=True)
        weight = float(matrix[rows, columns].mean())
        return (
            f"a mixture of tokens in each slot: the nearest order, {_listed(columns, names)}, has "
            f"{weight:.0%} of the weight (a permutation: 100%, an even mixture: "
            f"{1 / len(names):.0%})"
        )
    tokens = matrix.argmax(-1).tolist()
    if tokens == list(range(len(names))):
        return UNCHANGED
    faults = [
        f"{name} lost" if not count else f"{name} {count} times"
        for name, count in ((name, tokens.count(token)) for token, name in enumerate(names))
        if count != 1
    ]
    note = f" (no permutation: {', '.join(faults)})" if faults else ""
    return f"order: {_listed(tokens, names)}{note}"


def _one_hot(tokens: Sequence[int]) -> Tensor:
    return torch.eye(len(tokens))[list(tokens)]


def _listed(tokens: Sequence[int], names: Sequence[str]) -> str:
    return " ".join(names[token] for token in tokens)

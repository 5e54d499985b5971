"""Of which call of an image encoder logits are, told by the graph that computed them."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator
from functools import cache
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}
"""The largest distance from 1 of the cosine of a feature with itself, after a host's arithmetic."""


class Call(Protocol):
    """A call of an image encoder.

    Attributes:
        nodes: of the graph: those of the encoder's output, and of what the model made of it.
        output: features (N, e) of the encoder, or None.
    """

    nodes: set[Any]
    output: Tensor | None


OneCall = TypeVar("OneCall", bound=Call)


def reached(
    logits: Tensor, calls: Collection[OneCall], text_nodes: Collection[Any]
) -> list[OneCall]:
    """Return those of ``calls`` whose features ``logits`` were computed from.

    The graph tells it where the model that called the encoder has returned, or where the features
    have a graph of their own. Else the operations that met them saved them.

    Args:
        logits: with their graph, which is kept.
        calls: of one step.
        text_nodes: nodes of text features, behind which no image is looked for.
    """
    ends = {node: call for call in calls for node in call.nodes}
    found: list[OneCall] = []
    saved: list[Tensor] = []
    for node in nodes_of(logits, {*ends, *text_nodes}):
        if node in ends:
            found.append(ends[node])
        else:
            saved += _saved(node)
    return [call for call in calls if call in found] or [
        call for call in calls if any(_are_features(x, call.output) for x in saved)
    ]


def nodes_in(value: Any) -> Iterator[Any]:
    """Yield the nodes of the tensors in the output of a module: a tensor, a list, tuple or dict."""
    if isinstance(value, Tensor):
        yield from () if value.grad_fn is None else (value.grad_fn,)
    elif isinstance(value, (list, tuple, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from nodes_in(part)


def nodes_of(tensor: Tensor, ends: Collection[Any] = ()) -> Iterator[Any]:
    """Yield the nodes of a tensor's graph, always in the same order, up to those in ``ends``."""
    seen, stack = set(), [tensor.grad_fn]
    while stack:
        node: Any = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        if node not in ends:
            stack += [following for following, _ in node.next_functions]


def _saved(node: Any) -> Iterator[Tensor]:
    """Yield the tensors that a node keeps for its backward pass."""
    kind: Any = type(node)
    for name in _saved_names(kind):
        try:
            value = getattr(node, name)
        except RuntimeError:  # freed by a backward pass
            continue
        if isinstance(value, Tensor) and value.dim():
            yield value


@cache
def _saved_names(kind: Hashable) -> list[str]:
    return [name for name in dir(kind) if name.startswith("_saved_")]


@torch.no_grad()
def _are_features(saved: Tensor, output: Tensor | None) -> bool:
    """Whether the rows or the columns of a tensor are features, up to their lengths."""
    if output is None or not saved.is_floating_point():
        return False
    known = F.normalize(output.float(), dim=-1)
    limit = 1 - max(TOLERANCE[x.dtype] for x in (saved, output))
    for rows in (saved, saved.mT) if saved.dim() > 1 else (saved,):
        if rows.shape[-1] == known.shape[-1]:
            rows = F.normalize(rows.detach().float().flatten(0, -2), dim=-1)
            if bool(((rows @ known.T).amax(-1) > limit).all()):
                return True
    return False

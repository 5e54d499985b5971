"""What the prompts of all classes have in common, in value and in gradient."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

FULL_PRECISION = (torch.float32, torch.float64)


class Sharing(NamedTuple):
    """What can be computed once for all classes.

    Attributes:
        n_tokens: leading tokens that all classes share.
        rest_is_constant: whether no gradient is wanted for the tokens behind them.
    """

    n_tokens: int
    rest_is_constant: bool


def equal_tokens(prompts: Tensor) -> int:
    """How many leading tokens of ``prompts`` (…, C, L, d) are equal in all classes of each set.

    >>> equal_tokens(torch.tensor([[[1.0], [2.0], [3.0]], [[1.0], [2.0], [4.0]]]))
    2
    """
    equal = (prompts == prompts[..., :1, :, :]).all(-1).flatten(0, -2).all(0)
    return int(equal.long().cumprod(0).sum())


def origin(prompts: Tensor) -> Hashable:
    """How ``prompts`` were computed: prompts of the same origin share the same in gradient.

    Another learner's have another, and those of the same learner once more of it is trained.

    >>> one, other = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    >>> origin(one + 1) == origin(one + 2), origin(one + 1) == origin(other + 1)
    (True, False)
    """
    steps = tuple(node.name() for node in _nodes(prompts))
    return steps, tuple((id(leaf), leaf.shape) for leaf in leaves(prompts))


def sharing_in_gradient(prompts: Tensor, n: int) -> Sharing:
    """Of ``n`` leading tokens that are equal in value, how many are the same function.

    A class-specific context may start out equal for all classes. Then the gradient of a class must
    reach its own parameters, and nothing can be shared but the tokens before the context.

    Args:
        prompts: (…, C, L, d), with the graph they were computed by, which is kept.
        n: leading tokens to look at; the answer is all of them, the first, or none.
    """
    sources = list(leaves(prompts))
    limit = 1e-2 if prompts.dtype in FULL_PRECISION else 1e-1  # half rounds each class's part
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(prompts.device)

    of_class = random(prompts.shape[-3])
    probe = random(*prompts.shape[-2:])

    def gradients(value: Tensor, upstream: Tensor | None = None) -> list[Tensor]:
        found = torch.autograd.grad(value, sources, upstream, retain_graph=True, allow_unused=True)
        return [
            torch.zeros_like(leaf) if g is None else g
            for leaf, g in zip(sources, found, strict=True)
        ]

    def is_shared(length: int) -> bool:
        head = prompts[..., :length, :].float() * probe[:length]
        every = gradients((head.sum((-1, -2)) * of_class).sum())
        first = gradients((head[..., 0, :, :] * of_class.sum()).sum())
        # Leaf by leaf: a small one must not hide behind a large one.
        return all(
            float((a - b).float().norm()) <= limit * float(a.float().norm())
            for a, b in zip(every, first, strict=True)
        )

    length = next((length for length in (n, min(n, 1)) if is_shared(length)), 0)
    probe[:length] = 0
    # Expanded: with very many classes, a tensor of that size more would not fit.
    rest = gradients(prompts, probe.to(prompts.dtype).expand_as(prompts))
    return Sharing(length, rest_is_constant=not any(bool(g.any()) for g in rest))


def leaves(tensor: Tensor) -> Iterator[Tensor]:
    """The tensors that require a gradient and that ``tensor`` was computed from."""
    if tensor.grad_fn is None:
        yield tensor
    yield from (node.variable for node in _nodes(tensor) if hasattr(node, "variable"))


def _nodes(tensor: Tensor) -> Iterator[Any]:
    """The nodes of the graph that ``tensor`` was computed by, always in the same order."""
    seen, stack = set(), [tensor.grad_fn]
    while stack:
        node: Any = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        stack += [following for following, _ in node.next_functions]

"""What the prompts of all classes share, in value and in gradient; how prompts are computed."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from .logit_origin import nodes_of

FULL_PRECISION = (torch.float32, torch.float64)
REMEMBERED = 16
"""Ways of computing prompts for which a value is remembered."""

Value = TypeVar("Value")


class Sharing(NamedTuple):
    """What can be computed once for all classes.

    Attributes:
        n_tokens: number of leading tokens that all classes share.
        rest_is_constant: whether the tokens behind them need no gradient.
    """

    n_tokens: int
    rest_is_constant: bool


def eot_of(tokens: Tensor) -> tuple[int, ...]:
    """Return the position of EOT in each row of ``tokens`` (C, L), read once from a GPU.

    >>> eot_of(torch.tensor([[7, 3, 9, 0], [7, 9, 0, 0]]))
    (2, 1)
    """
    if tokens.device.type == "cpu" or tokens.is_inference():
        return tuple(tokens.argmax(-1).tolist())
    known = _EOT.get(id(tokens))
    if known is None or known[0]() is not tokens or known[1] != tokens._version:
        found = tuple(tokens.argmax(-1).tolist())
        known = _EOT[id(tokens)] = weakref.ref(tokens), tokens._version, found
        weakref.finalize(tokens, _EOT.pop, id(tokens), None)
    return known[2]


_EOT: dict[int, tuple[weakref.ref[Tensor], int, tuple[int, ...]]] = {}


class Remembered(Generic[Value]):
    """Remembers a value for prompts of the same origin that come with the same tokens.

    So the host need not read prompts on a GPU at each step. On the CPU nothing is remembered.
    """

    def __init__(self) -> None:
        self._values: dict[Hashable, tuple[Tensor, Value]] = {}

    def __len__(self) -> int:
        return len(self._values)

    def get(self, prompts: Tensor, tokens: Tensor, find: Callable[[], Value]) -> tuple[Value, bool]:
        """Return the value, and whether it was remembered; otherwise ``find`` returned it."""
        has_graph = prompts.requires_grad and torch.is_grad_enabled()
        if prompts.device.type == "cpu" or not has_graph or tokens.is_inference():
            return find(), False  # without a graph nothing says how prompts were computed
        key = id(tokens), tokens._version, prompts.shape, prompts.dtype, origin(prompts)
        if key in self._values:
            return self._values[key][1], True
        if len(self._values) == REMEMBERED:  # some hosts make new leaves at every step
            self._values.clear()
        value = find()
        self._values[key] = tokens, value  # tokens live on, so no other tensor gets their id
        return value, False

    def __getstate__(self) -> dict[str, Any]:
        # A copy of a model has other leaves.
        return {"_values": {}}


def are_equal(prompts: Tensor, n: int) -> Tensor:
    """Return a boolean scalar: whether all classes of each set share the first ``n`` tokens."""
    return (prompts[..., :n, :] == prompts[..., :1, :n, :]).all()


def equal_tokens(prompts: Tensor) -> int:
    """Return how many leading tokens of ``prompts`` (…, C, L, d) all classes of each set share.

    >>> equal_tokens(torch.tensor([[[1.0], [2.0], [3.0]], [[1.0], [2.0], [4.0]]]))
    2
    """
    equal = (prompts == prompts[..., :1, :, :]).all(-1).flatten(0, -2).all(0)
    return int(equal.long().cumprod(0).sum())


def origin(prompts: Tensor) -> Hashable:
    """Return how ``prompts`` were computed: prompts of the same origin share the same gradient.

    Prompts of another learner have another origin, and so have prompts of the same learner once
    more of it is trained.

    >>> one, other = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    >>> origin(one + 1) == origin(one + 2), origin(one + 1) == origin(other + 1)
    (True, False)
    """
    steps = tuple(node.name() for node in nodes_of(prompts))
    return steps, tuple((id(leaf), leaf.shape) for leaf in leaves(prompts))


def sharing_in_gradient(prompts: Tensor, n: int) -> Sharing:
    """Return how many of ``n`` leading tokens of equal value are the same function.

    A class-specific context may start with equal values for all classes. The gradient of a class
    must then reach its own parameters, so only the tokens before the context can be shared.

    Args:
        prompts: (…, C, L, d), with their graph, which is kept.
        n: number of leading tokens; the answer is all of them, the first, or none.
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
        # Leaf by leaf: a large gradient must not hide a small one.
        return all(
            float((a - b).float().norm()) <= limit * float(a.float().norm())
            for a, b in zip(every, first, strict=True)
        )

    length = next((length for length in (n, min(n, 1)) if is_shared(length)), 0)
    probe[:length] = 0
    # Expanded: with very many classes, one more tensor of this size would not fit.
    rest = gradients(prompts, probe.to(prompts.dtype).expand_as(prompts))
    return Sharing(length, rest_is_constant=not any(bool(g.any()) for g in rest))


def leaves(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the tensors that require a gradient and from which ``tensor`` was computed."""
    if tensor.grad_fn is None:
        yield tensor
    yield from (node.variable for node in nodes_of(tensor) if hasattr(node, "variable"))

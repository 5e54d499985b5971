"""Observe a host trainer while it takes a step: its losses, and the cost of its text branch."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...encoders.fast_forward import FastForward
from ...encoders.shared_prefix import equal_tokens

_NOT_HOST_CODE = (str(Path(torch.__file__).parent), str(Path(__file__).parents[2]))


class SeenLoss(NamedTuple):
    """A cross-entropy of a host: the shape of its logits, and the line that computes it."""

    shape: tuple[int, ...]
    place: str


@contextlib.contextmanager
def record_losses() -> Iterator[list[SeenLoss]]:
    """Record every ``F.cross_entropy`` while the block runs.

    >>> with record_losses() as losses:
    ...     _ = F.cross_entropy(torch.zeros(2, 3), torch.tensor([0, 1]))
    >>> losses[0].shape
    (2, 3)
    """
    losses: list[SeenLoss] = []
    compute = F.cross_entropy

    def recording(*args: Any, **kwargs: Any) -> Tensor:
        logits = args[0] if args else kwargs["input"]
        losses.append(SeenLoss(tuple(logits.shape), _place()))
        # The original again meanwhile: a TorchFunctionMode calls F.cross_entropy a second time.
        with mock.patch.object(F, "cross_entropy", compute):
            return compute(*args, **kwargs)

    with mock.patch.object(F, "cross_entropy", recording):
        yield losses


def _place() -> str:
    """Return file and line of the host's code that is running."""
    frame: Any = sys._getframe()
    while frame.f_back and frame.f_code.co_filename.startswith(_NOT_HOST_CODE):
        frame = frame.f_back
    path = Path(frame.f_code.co_filename)
    short = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return f"{short}:{frame.f_lineno}"


class TextCalls:
    """A forward pre-hook that stores the arguments of each text encoder's first call."""

    def __init__(self, encoders: Sequence[nn.Module]) -> None:
        self.given: dict[nn.Module, tuple[Any, ...]] = {}
        self._handles = [encoder.register_forward_pre_hook(self._store) for encoder in encoders]

    def _store(self, encoder: nn.Module, args: tuple[Any, ...]) -> None:
        self.given.setdefault(encoder, args)

    def stop(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()


class Gain(NamedTuple):
    """The costs of one call: of the host's own text branch, then of the fast one.

    Attributes:
        tokens: numbers of tokens through the text tower.
        seconds: durations of a forward and backward pass.
        memory: bytes saved for the backward pass.
    """

    tokens: tuple[int, int]
    seconds: tuple[float, float]
    memory: tuple[int, int]


def gain_of(forward: FastForward, args: tuple[Any, ...]) -> Gain:
    """Measure both text branches once, after a warm-up pass, on a host's own prompts.

    Args:
        forward: the fast forward that replaces the forward of the host's text encoder.
        args: the arguments of a host's call: prompts (…, C, L, d), tokens (C, L), deep prompts.
    """
    prompts, tokens, *deep = args[0].detach(), args[1], *map(_learned, args[2:])
    sets = prompts.shape[:-3].numel()
    lengths = tokens.argmax(-1) + 1
    shared = equal_tokens(prompts[..., : int(lengths.min()), :])
    computed = shared + int((lengths - shared).sum())
    # A context shared by all classes is one tensor; class-specific contexts are whole prompts.
    learned = prompts[..., :1, :shared, :] if shared > 1 else prompts

    def given(leaf: Tensor) -> Tensor:
        head = leaf.expand(*prompts.shape[:-2], -1, -1)
        return torch.cat([head, prompts[..., leaf.shape[-2] :, :]], -2)

    own = _cost(lambda x: forward.host_forward(given(x), tokens, *deep), learned, forward.encoder)
    fast = _cost(lambda x: forward(given(x), tokens, *deep), learned, forward.encoder)
    return Gain((sets * tokens.numel(), sets * computed), (own[0], fast[0]), (own[1], fast[1]))


def _learned(deep: Any) -> Any:
    """Return deep prompts, a list or a stack, as leaves: the graph of the call is freed."""
    if isinstance(deep, Tensor):
        return deep.detach().requires_grad_()
    return [prompt.detach().requires_grad_() for prompt in deep]


def _cost(
    branch: Callable[[Tensor], Tensor], learned: Tensor, encoder: nn.Module
) -> tuple[float, int]:
    weights = {parameter.untyped_storage().data_ptr() for parameter in encoder.parameters()}
    for _ in range(2):  # the first pass warms up
        saved: dict[int, int] = {}

        def save(tensor: Tensor, saved: dict[int, int] = saved) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        leaf = learned.detach().clone().requires_grad_()
        start = time.perf_counter()
        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            features = branch(leaf)
        features.float().sum().backward()
        if features.is_cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    return seconds, sum(saved.values())

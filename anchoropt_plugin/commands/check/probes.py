"""What can be seen of a host while it takes a step: its losses, and what its text branch costs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ...encoders.fast_forward import FastForward
from ...encoders.shared_prefix import equal_tokens

_NOT_THE_HOST_S = (str(Path(torch.__file__).parent), str(Path(__file__).parents[2]))


class SeenLoss(NamedTuple):
    """A cross-entropy that a host computed: the shape of its logits, and where."""

    shape: tuple[int, ...]
    place: str


class LossSpy(TorchFunctionMode):
    """While active, notes every ``F.cross_entropy`` in ``seen``."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[SeenLoss] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is F.cross_entropy:
            logits = args[0] if args else (kwargs or {})["input"]
            self.seen.append(SeenLoss(tuple(logits.shape), _place()))
        return func(*args, **(kwargs or {}))


def _place() -> str:
    """File and line of the host's code that is running."""
    frame: Any = sys._getframe()
    while frame.f_back and frame.f_code.co_filename.startswith(_NOT_THE_HOST_S):
        frame = frame.f_back
    path = Path(frame.f_code.co_filename)
    short = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return f"{short}:{frame.f_lineno}"


class TextCalls:
    """A forward pre-hook on text encoders that keeps what each of them was first called with."""

    def __init__(self, encoders: Sequence[nn.Module]) -> None:
        self.given: dict[nn.Module, tuple[Any, ...]] = {}
        self._handles = [encoder.register_forward_pre_hook(self._keep) for encoder in encoders]

    def _keep(self, encoder: nn.Module, args: tuple[Any, ...]) -> None:
        self.given.setdefault(encoder, args)

    def stop(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()


class Gain(NamedTuple):
    """The usual text branch against the fast one, on one call.

    Attributes:
        tokens: through the tower, of both.
        seconds: of a forward and backward pass, of both.
        memory: bytes kept for the backward pass, of both.
    """

    tokens: tuple[int, int]
    seconds: tuple[float, float]
    memory: tuple[int, int]


def gain_of(forward: FastForward, args: tuple[Any, ...]) -> Gain:
    """Measure both branches once, after a pass to warm up, on prompts that a host has given.

    Args:
        forward: the stand-in on the host's encoder, in use.
        args: of the host's call: prompts (…, C, L, d), tokens (C, L), and further ones.
    """
    prompts, tokens, *deep = args[0].detach(), args[1], *map(_learned, args[2:])
    sets = prompts.shape[:-3].numel()
    lengths = tokens.argmax(-1) + 1
    shared = equal_tokens(prompts[..., : int(lengths.min()), :])
    computed = shared + int((lengths - shared).sum())
    # What all classes share is learned once; a context of each class is learned with its prompt.
    learned = prompts[..., :1, :shared, :] if shared > 1 else prompts

    def given(leaf: Tensor) -> Tensor:
        head = leaf.expand(*prompts.shape[:-2], -1, -1)
        return torch.cat([head, prompts[..., leaf.shape[-2] :, :]], -2)

    own = _cost(lambda x: forward.host_forward(given(x), tokens, *deep), learned, forward.encoder)
    fast = _cost(lambda x: forward(given(x), tokens, *deep), learned, forward.encoder)
    return Gain((sets * tokens.numel(), sets * computed), (own[0], fast[0]), (own[1], fast[1]))


def _learned(deep: Any) -> Any:
    """Deep prompts, a list or stacked, as leaves: the graph of the call is gone by now."""
    if isinstance(deep, Tensor):
        return deep.detach().requires_grad_()
    return [prompt.detach().requires_grad_() for prompt in deep]


def _cost(
    branch: Callable[[Tensor], Tensor], learned: Tensor, encoder: nn.Module
) -> tuple[float, int]:
    weights = {parameter.untyped_storage().data_ptr() for parameter in encoder.parameters()}
    for _ in range(2):  # the first one warms up
        kept: dict[int, int] = {}

        def keep(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        leaf = learned.detach().clone().requires_grad_()
        begun = time.perf_counter()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            features = branch(leaf)
        features.float().sum().backward()
        if features.is_cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - begun
    return seconds, sum(kept.values())

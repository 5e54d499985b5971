"""Deep prompts: keep the anchor and the layout of the position matrix at every prompted block.

A host with deep prompts writes them over some hidden states of the context before further text
blocks. This would silently erase the anchor and lose the position matrix at the first such block.
Instead the context becomes ``P · tokens``: the deep prompt replaces the soft tokens that the host
overwrites, and every other token, the anchor among them, keeps its own hidden state.

Hosts insert deep prompts in many ways: in their text encoder, or in the blocks of a fork of CLIP;
from a list that the encoder gets, or from parameters of the blocks. So ``DeepPromptFinder`` watches
a forward pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import UserError
from .text_tower import blocks_of

FIRST = 1
"""Row of the context's first slot, after SOS."""


class Survivors(NamedTuple):
    """How the hidden states of tokens that no deep prompt replaces are read before a block.

    Attributes:
        early: number of slots by which they are read too early; 0, or 1 as in the released code,
            which reads SOS for a token in the first slot.
        first: whether a token in several slots is read at the first of them, as in the released
            code, and not as their mean.
    """

    early: int = 0
    first: bool = False


OWN_SLOTS = Survivors()
"""Each token is read at its own slots."""


class DeepPrompt(NamedTuple):
    """A prompt that a host writes over hidden states before one text block.

    Attributes:
        block: number of the text block.
        first: first row that is overwritten; the prompt's n rows follow from there.
        source: where the prompt (n, d) comes from: an index into the list that the text encoder
            gets, or the name of one of the encoder's parameters.
        half: whether the host rounds the prompt to half precision.
    """

    block: int
    first: int
    source: int | str
    half: bool

    def read(self, encoder: nn.Module, given: Sequence[Tensor]) -> Tensor:
        """Return the prompt (n, d) for a call of ``encoder`` with the list ``given``."""
        source = self.source
        prompt = given[source] if isinstance(source, int) else encoder.get_parameter(source)
        return prompt.half() if self.half else prompt


class DeepPromptFinder:
    """Watches a call of a text encoder and finds its deep prompts.

    Args:
        encoder: the text encoder; blocks without CLIP's ``ln_1``, or ``layer_norm1`` as in
            transformers, are not watched.
    """

    def __init__(self, encoder: Any) -> None:
        self.encoder = encoder
        self._before: dict[int, Tensor] = {}
        self._after: dict[int, Tensor] = {}

    def __enter__(self) -> DeepPromptFinder:
        self._handles = []
        for number, block in enumerate(blocks_of(self.encoder)):
            first = getattr(block, "ln_1", None) or getattr(block, "layer_norm1", None)
            if first is None:
                continue

            def entered(_: Any, args: Any, number: int = number) -> None:
                self._after[number] = args[0].detach()

            def left(_: Any, args: Any, output: Any, number: int = number) -> None:
                self._before[number + 1] = _states(output).detach()

            self._handles += [
                # By the time ln_1 runs, the host has inserted all deep prompts of this block.
                first.register_forward_pre_hook(entered),
                block.register_forward_hook(left),
            ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def found(self, given: Sequence[Tensor]) -> tuple[DeepPrompt, ...]:
        """Return the deep prompts of the last call, in which the encoder got the list ``given``.

        Raises:
            UserError: hidden states are overwritten with values of unknown origin.
        """
        with torch.no_grad():
            blocks = sorted(self._before.keys() & self._after.keys())
            found = (self._deep_prompt(number, given) for number in blocks)
            return tuple(prompt for prompt in found if prompt is not None)

    def _deep_prompt(self, number: int, given: Sequence[Tensor]) -> DeepPrompt | None:
        before, after = self._before[number], self._after[number]
        if before.shape == after.shape:
            rows = (before != after).flatten(1).any(1).nonzero().flatten().tolist()
            if not rows:
                return None
            written = after[rows[0] : rows[-1] + 1]
            for source, half in self._candidates(given):
                deep = DeepPrompt(number, rows[0], source, half)
                prompt = deep.read(self.encoder, given)
                fits = prompt.shape == (len(written), written.shape[-1])
                if fits and bool((written == prompt.to(written.dtype)[:, None]).all()):
                    return deep
        raise UserError(
            f"{type(self.encoder).__name__} changes hidden states before text block {number} in an "
            "unknown way: expected rows overwritten with a deep prompt (n, d) that comes from a "
            "list argument or from a parameter of the encoder"
        )

    def _candidates(self, given: Sequence[Tensor]) -> Iterator[tuple[int | str, bool]]:
        """Places where a deep prompt may come from, and whether it is rounded there."""
        own = (name for name, parameter in self.encoder.named_parameters() if parameter.dim() == 2)
        sources = [*range(len(given)), *own]
        for half in (False, True):
            yield from ((source, half) for source in sources)


def _states(given: Any) -> Tensor:
    """Hidden states (L, C, d), alone or first in a list, as the blocks of forks pass them."""
    states: Tensor = given if isinstance(given, Tensor) else given[0]
    return states


def arranged(
    matrix: Tensor | None,
    deep: Tensor,
    slots: Tensor,
    first: int = 0,
    survivors: Survivors = OWN_SLOTS,
) -> Tensor:
    """Return the hidden states that replace the context before a prompted block.

    Args:
        matrix: the position matrix P in force, (M + K, M + K), or None for a host without anchors.
        deep: the block's prompt, (n, d).
        slots: hidden states of the context, (…, M + K, d), or (…, M, d) without anchors; those
            ``survivors.early`` slots before, if they are read too early.
        first: the soft token from which on the deep prompt replaces soft tokens.
        survivors: how the tokens that are not overwritten are read.

    Returns:
        A tensor like ``slots``: ``P · tokens``. The hidden state of a token that is not overwritten
        is read at the slot where P has put the token.
    """
    deep = deep.to(slots.dtype).expand(*slots.shape[:-2], -1, -1)
    stop = first + deep.shape[-2]
    if matrix is None:
        return torch.cat([slots[..., :first, :], deep, slots[..., stop:, :]], -2)
    matrix = matrix.to(slots.dtype)
    # A token in several slots is read as their mean; a lost token is not read at all.
    where = matrix.detach()
    if survivors.first:
        weight, slot = where.max(0, keepdim=True)
        where = torch.zeros_like(where).scatter(0, slot, weight)
    where = where / where.sum(0).clamp_min(torch.finfo(where.dtype).tiny)
    tokens = where.t() @ slots
    return matrix @ torch.cat([tokens[..., :first, :], deep, tokens[..., stop:, :]], -2)


@contextlib.contextmanager
def overwriting(
    encoder: Any,
    matrix: Tensor,
    prompts: Sequence[DeepPrompt],
    given: Sequence[Tensor],
    survivors: Survivors = OWN_SLOTS,
) -> Iterator[None]:
    """Let prompted blocks see their context arranged by ``matrix``, each with its deep prompt.

    Inside the context manager a prompted block computes what a block of CLIP does, without the
    overwriting of its own forward. A list of deep prompts must be passed to the text encoder empty.
    A block takes hidden states (L, C, d), or a list that begins with them.

    Args:
        encoder: the host's text encoder.
        matrix: the position matrix P in force, (M + K, M + K).
        prompts: the deep prompts.
        given: the list of deep prompts in this call, if any.
        survivors: how the tokens that are not overwritten are read.
    """
    stop = FIRST + len(matrix)

    def forward_with(block: Any, deep: DeepPrompt) -> Callable[..., Any]:
        prompt = deep.read(encoder, given)

        def forward(states: Any) -> Any:
            x = _states(states)
            context = x[FIRST - survivors.early : stop - survivors.early].transpose(0, 1)
            context = arranged(matrix, prompt, context, deep.first - FIRST, survivors)
            x = torch.cat([x[:FIRST], context.transpose(0, 1), x[stop:]])
            x = x + block.attention(block.ln_1(x))
            x = x + block.mlp(block.ln_2(x))
            return x if isinstance(states, Tensor) else [x, *states[1:]]

        return forward

    blocks = blocks_of(encoder)
    prompted = [(blocks[deep.block], deep) for deep in prompts]
    for block, deep in prompted:
        block.forward = forward_with(block, deep)
    try:
        yield
    finally:
        for block, _ in prompted:
            del block.forward

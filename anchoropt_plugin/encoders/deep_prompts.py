"""Deep prompts: keep the layout of the position matrix, and the anchor, at every prompted block.

A host with deep prompts writes them over some of the context's hidden states before further text
blocks. That would wipe out the anchor and lose the position matrix at the first of them, silently.
Instead the context becomes ``P · tokens``, where the written-over soft tokens are the deep prompt
and all others, the anchor among them, are their own hidden states.

Hosts do it in many ways: in their text encoder, or in the blocks of a fork of CLIP, from a list
that is handed in or from parameters of the blocks. So it is found out by looking at a forward pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..method.position import AnchorPositionModule
from .text_tower import blocks_of

FIRST = 1
"""The context's first slot, behind SOS."""


class DeepPrompt(NamedTuple):
    """What a host writes over hidden states before one text block.

    Attributes:
        block: its number.
        first: the first row that is written over; as many follow as the prompt has.
        source: where the prompt (n, d) is: an index into the list that the text encoder is called
            with, or the name of a parameter of that.
        half: whether the host rounds it to half precision.
    """

    block: int
    first: int
    source: int | str
    half: bool

    def read(self, encoder: nn.Module, given: Sequence[Tensor]) -> Tensor:
        """The prompt (n, d), where ``encoder`` is called with the list ``given``."""
        source = self.source
        prompt = given[source] if isinstance(source, int) else encoder.get_parameter(source)
        return prompt.half() if self.half else prompt


class DeepPromptFinder:
    """Looks on while a text encoder is called, and finds out its deep prompts.

    Args:
        encoder: a text encoder; its blocks that have no ``ln_1`` as CLIP's are not looked at.
    """

    def __init__(self, encoder: Any) -> None:
        self.encoder = encoder
        self._before: dict[int, Tensor] = {}
        self._after: dict[int, Tensor] = {}

    def __enter__(self) -> DeepPromptFinder:
        self._handles = []
        for number, block in enumerate(blocks_of(self.encoder)):
            if not hasattr(block, "ln_1"):
                continue

            def entered(_: Any, args: Any, number: int = number) -> None:
                self._after[number] = args[0].detach()

            def left(_: Any, args: Any, output: Any, number: int = number) -> None:
                self._before[number + 1] = _states(output).detach()

            self._handles += [
                # What the first layer of a block sees has all been written over that will be.
                block.ln_1.register_forward_pre_hook(entered),
                block.register_forward_hook(left),
            ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def found(self, given: Sequence[Tensor]) -> tuple[DeepPrompt, ...]:
        """The deep prompts of the last call, in which the encoder was handed the list ``given``.

        Raises:
            UserError: hidden states are written over with something that is not found.
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
            f"{type(self.encoder).__name__} changes hidden states before text block {number} in a "
            "way that is not known: want rows written over with a deep prompt (n, d), handed to it "
            "in a list or a parameter of its own"
        )

    def _candidates(self, given: Sequence[Tensor]) -> Iterator[tuple[int | str, bool]]:
        """Where a deep prompt may be, and whether it is rounded."""
        own = (name for name, parameter in self.encoder.named_parameters() if parameter.dim() == 2)
        sources = [*range(len(given)), *own]
        for half in (False, True):
            yield from ((source, half) for source in sources)


def _states(given: Any) -> Tensor:
    """Hidden states (L, C, d), alone or first in a list, as blocks of forks pass them on."""
    states: Tensor = given if isinstance(given, Tensor) else given[0]
    return states


def arranged(matrix: Tensor | None, deep: Tensor, slots: Tensor, first: int = 0) -> Tensor:
    """What takes the place of the context's hidden states before a prompted block.

    Args:
        matrix: the P in force, (M + K, M + K), or None for the host alone.
        deep: the block's prompt, (n, d).
        slots: hidden states of the context, (…, M + K, d), or (…, M, d) without anchors.
        first: the deep prompt stands for the soft tokens from this one on.

    Returns:
        Like ``slots``: ``P · tokens``, where the hidden state of a token that
        is not written over is read at the slot where P has put it.
    """
    deep = deep.to(slots.dtype).expand(*slots.shape[:-2], -1, -1)
    stop = first + deep.shape[-2]
    if matrix is None:
        return torch.cat([slots[..., :first, :], deep, slots[..., stop:, :]], -2)
    matrix = matrix.to(slots.dtype)
    # Where a token stands in several slots their mean is read; a lost one is not read at all.
    where = matrix.detach()
    where = where / where.sum(0).clamp_min(torch.finfo(where.dtype).tiny)
    tokens = where.t() @ slots
    return matrix @ torch.cat([tokens[..., :first, :], deep, tokens[..., stop:, :]], -2)


@contextlib.contextmanager
def overwriting(
    encoder: Any,
    position: AnchorPositionModule,
    prompts: Sequence[DeepPrompt],
    given: Sequence[Tensor],
) -> Iterator[None]:
    """While active, prompted blocks see their context arranged anew, each with its prompt.

    They compute what a block of CLIP does, without what their own forward writes over; a list
    that the text encoder takes must be handed to it empty meanwhile. A block takes hidden states
    (L, C, d), or a list that begins with them.
    """
    stop = FIRST + position.n_ctx + position.n_anchors
    matrix = position.matrix()

    def forward_with(block: Any, deep: DeepPrompt) -> Callable[..., Any]:
        prompt = deep.read(encoder, given)

        def forward(states: Any) -> Any:
            x = _states(states)
            context = x[FIRST:stop].transpose(0, 1)
            context = arranged(matrix, prompt, context, deep.first - FIRST)
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

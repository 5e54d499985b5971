"""Deep prompts: keep the layout of the position matrix, and the anchor, at every prompted block.

A host with deep prompts overwrites the context's slots before further text blocks. That would wipe
out the anchor and lose the position matrix at the first of them, silently. Instead the slots get
``P · [deep prompt; hidden state of the anchor]``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .position import AnchorPositionModule

FIRST = 1
"""The context's first slot, behind SOS."""


def arranged(position: AnchorPositionModule | None, deep: Tensor, slots: Tensor) -> Tensor:
    """What takes the place of the context's hidden states before a prompted block.

    Args:
        position: the module on the host's learner, or None for the host alone.
        deep: the block's prompt, (M, d).
        slots: hidden states of the context, (…, M + K, d), or (…, M, d) without anchors.

    Returns:
        (…, M + K, d), of the dtype of ``slots``: ``P · [deep; anchor]`` with the P in force; the
        hidden state of an anchor is read at the slot where P has put it. Without anchors ``deep``.
    """
    deep = deep.to(slots.dtype).expand(*slots.shape[:-2], -1, -1)
    if position is None:
        return deep
    matrix = position.matrix().to(slots.dtype)
    # Where an anchor stands in several slots their mean is read; a lost one is not read at all.
    where = matrix[:, position.n_ctx :].detach()
    where = where / where.sum(0).clamp_min(torch.finfo(where.dtype).tiny)
    return matrix @ torch.cat([deep, where.t() @ slots], -2)


@contextlib.contextmanager
def overwriting(
    blocks: Sequence[nn.Module], position: AnchorPositionModule, deep: Sequence[Tensor]
) -> Iterator[None]:
    """While active, ``blocks`` 1, 2, … see their context arranged anew, each with its prompt.

    The host's own overwriting must be off meanwhile. A block takes hidden states (L, C, d), or as
    in MaPLe's fork of CLIP a list that begins with them.
    """

    def hook_with(prompt: Tensor) -> Any:
        def hook(block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            given = args[0]
            x = given if isinstance(given, Tensor) else given[0]
            stop = FIRST + position.n_ctx + position.n_anchors
            context = arranged(position, prompt, x[FIRST:stop].transpose(0, 1)).transpose(0, 1)
            x = torch.cat([x[:FIRST], context, x[stop:]])
            return ((x if isinstance(given, Tensor) else [x, *given[1:]]), *args[1:])

        return hook

    pairs = zip(list(blocks)[1:], deep, strict=False)
    handles = [block.register_forward_pre_hook(hook_with(prompt)) for block, prompt in pairs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

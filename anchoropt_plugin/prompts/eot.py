"""Where a prompt ends: features are read at EOT, which anchors move by K tokens.

A learner's ``tokenized_prompts`` move with it. A host may hold tokens of its own, copied before the
anchors came in or of further classes, or the positions alone, and would read features K tokens
before EOT, silently. One that makes prompts of its learner's parts by itself, as for a teacher,
has no anchors in them, and would read features K tokens behind EOT. In a prompt EOT is found by
its embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from .hooks import shift, unshift


def ending_as_prompts(given: tuple[Any, ...], module: Any) -> tuple[tuple[Any, ...], bool]:
    """A text encoder's arguments, with tokens (C, L) moved to end where the prompts do.

    Args:
        given: prompts (…, C, L, d), tokens, and whatever else the host gives it.
        module: what ``attach`` put on the learner.

    Returns:
        The arguments, and whether the prompts have anchors: tokens that had to be moved back say
        that they have none.
    """
    prompts = _prompts_in(given, module)
    if prompts is None:
        return given, True
    moved, have_anchors = list(given), True
    for place, tokens in enumerate(given):
        is_tokens = isinstance(tokens, Tensor) and tokens.shape == prompts.shape[-3:-1]
        if not is_tokens or tokens.is_floating_point() or _ends_at(prompts, tokens, module.end):
            continue
        for move in (shift, unshift):
            others = tokens.clone()
            move(others, 1, module.n_anchors)
            if _ends_at(prompts, others, module.end):
                moved[place] = others
                have_anchors = have_anchors and move is shift
    return tuple(moved), have_anchors


@torch.no_grad()
def check_is_read(name: str, call: Callable[..., Any], given: tuple[Any, ...], module: Any) -> None:
    """See to it that features depend on EOT: a causal encoder knows of it there and behind alone.

    Args:
        name: of the text encoder, for the message.
        call: its forward; it returns features (…, C, e), alone or first in a tuple.
        given: what it is called with.
        module: what ``attach`` put on the learner.

    Raises:
        UserError: the features of a class stay as they are without its EOT.
    """
    prompts = _prompts_in(given, module)
    if prompts is None:
        return
    is_end = (prompts == module.end.to(prompts)).all(-1)
    if not is_end.any(-1).all():
        return
    without = prompts.masked_fill(is_end[..., None], 0)
    outputs = call(*given), call(*(without if x is prompts else x for x in given))
    features, other = (x[0] if isinstance(x, (tuple, list)) else x for x in outputs)
    if bool((features == other).all(-1).any()):
        raise UserError(
            f"{name} reads features elsewhere than at EOT, which the anchors move by "
            f"{module.n_anchors}: it must find EOT when it is called, as "
            "tokenized_prompts.argmax(-1), and not keep positions from before"
        )


def _prompts_in(given: tuple[Any, ...], module: Any) -> Tensor | None:
    """The prompts (…, C, L, d) among arguments, where EOT is to be looked for in them."""
    end = getattr(module, "end", None)  # attach says what it is, where it is moved
    if end is None or not module.n_anchors:
        return None
    width = end.shape
    tensors = (x for x in given if isinstance(x, Tensor) and x.dim() > 2)
    return next((x for x in tensors if x.shape[-1:] == width), None)


def _ends_at(prompts: Tensor, tokens: Tensor, end: Tensor) -> bool:
    """Whether EOT is in all prompts where ``tokens`` have it."""
    rows = tokens.argmax(-1).to(prompts.device)
    found = prompts.detach()[..., torch.arange(len(rows), device=rows.device), rows, :]
    return bool((found == end.to(found)).all())

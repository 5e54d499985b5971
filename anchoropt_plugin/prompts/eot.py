"""Where EOT is: K anchors move it by K tokens, and features are read there.

``attach`` moves EOT in the learner's ``tokenized_prompts``. A host may hold tokens of its own,
copied before the anchors were attached, or of further classes. The host would then silently read
features K tokens before EOT. A host may also make prompts from parts of its learner, as for a
teacher: these carry no anchors, and the host would read features K tokens behind EOT. Both cases
are detected by the embedding of EOT in the prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..encoders.shared_prefix import eot_of
from ..errors import UserError


def shift(tokens: Tensor, first: int, by: int) -> None:
    """Repeat the token at ``first`` ``by`` times more, in place; the last ``by`` tokens go.

    Args:
        tokens: (C, L).
        first: position of the first soft token.
        by: anchors K.

    >>> tokens = torch.tensor([[7, 1, 1, 5, 9, 0, 0]])
    >>> shift(tokens, 1, 2)
    >>> tokens.tolist()
    [[7, 1, 1, 1, 1, 5, 9]]
    """
    tokens[:, first + by :] = tokens[:, first : tokens.shape[1] - by].clone()
    tokens[:, first : first + by] = tokens[:, first + by : first + by + 1]


def unshift(tokens: Tensor, first: int, by: int) -> None:
    """Undo ``shift``; the last ``by`` tokens become padding."""
    tokens[:, first : tokens.shape[1] - by] = tokens[:, first + by :].clone()
    tokens[:, tokens.shape[1] - by :] = 0


class MovedTokens:
    """Tokens in which ``attach`` moved EOT. They may be replaced, or changed in place by a state.

    Args:
        tokens: (C, L), after the move.
        end: embedding (d,) of EOT, or None: then nothing is compared.
    """

    def __init__(self, tokens: Tensor, end: Tensor | None) -> None:
        self.end = end
        self._known = tokens, _version(tokens)

    def check(self, name: str, tokens: Tensor, prompts: Tensor) -> None:
        """Compare tokens that were changed with arranged prompts (…, C, L, d).

        Raises:
            UserError: the prompts do not have EOT where the tokens have it; ``name`` is the
                learner's.
        """
        if self.end is None or torch.compiler.is_compiling():
            return
        known, version = self._known
        if tokens is known and _version(tokens) == version:
            return
        if prompts.shape[-3:-1] == tokens.shape and not bool(end_at(prompts, tokens, self.end)):
            raise UserError(
                f"the tokens in {name} were replaced after attach, which moves EOT in them: "
                "detach, replace tokens and embeddings, and attach again"
            )
        self._known = tokens, _version(tokens)


def _version(tokens: Tensor) -> int:
    """Return a number that changes when ``tokens`` change in place."""
    return 0 if tokens.is_inference() else tokens._version


def check_not_moved(name: str, tokens: Tensor, embedded: Tensor) -> None:
    """Raise ``UserError`` if EOT of ``tokens`` stands at padding: the tokens were moved before.

    Args:
        name: of the prompt learner, for the message.
        tokens: those of one prompt from EOT on.
        embedded: their embeddings, as the prompts have them.
    """
    is_padded = len(tokens) > 1 and bool(tokens[0] != tokens[1])
    if is_padded and torch.equal(embedded[0], embedded[1]):
        raise UserError(
            f"the tokens of {name} have EOT where token_suffix has padding: attach moved EOT in "
            "them before, for another learner that holds the same tensor or in a loaded state. "
            "Give each learner a copy of the plain tokens (clone), or detach the other learner"
        )


def tokens_as_prompts(
    given: tuple[Any, ...], end: Tensor, n_anchors: int
) -> tuple[tuple[Any, ...], bool]:
    """Return a text encoder's arguments with EOT in the tokens (C, L) where the prompts have it.

    Args:
        given: prompts (…, C, L, d), tokens, and further arguments of the host.
        end: embedding (d,) of EOT.
        n_anchors: anchors K of the learner.

    Returns:
        The arguments, and whether the prompts carry anchors: they do not if tokens had to be moved
        back.
    """
    prompts = _prompts_in(given, end)
    if prompts is None:
        return given, True
    moved, have_anchors = list(given), True
    for place, tokens in enumerate(given):
        is_tokens = isinstance(tokens, Tensor) and tokens.shape == prompts.shape[-3:-1]
        if not is_tokens or tokens.is_floating_point() or bool(end_at(prompts, tokens, end)):
            continue
        for move in (shift, unshift):
            others = tokens.clone()
            move(others, 1, n_anchors)
            if bool(end_at(prompts, others, end)):
                moved[place] = others
                have_anchors = have_anchors and move is shift
    return tuple(moved), have_anchors


@torch.no_grad()
def check_features_depend_on_eot(
    name: str, call: Callable[..., Any], given: tuple[Any, ...], end: Tensor, n_anchors: int
) -> None:
    """Check that features are read at EOT: in a causal encoder only EOT and later rows see it.

    Args:
        name: of the text encoder, for the message.
        call: its forward; it returns features (…, C, e), alone or first in a tuple.
        given: its arguments.
        end: embedding (d,) of EOT.
        n_anchors: anchors K of the learner.

    Raises:
        UserError: the features of a class do not change without its EOT.
    """
    prompts = _prompts_in(given, end)
    if prompts is None:
        return
    is_end = (prompts == end.to(prompts)).all(-1)
    if not is_end.any(-1).all():
        return
    without = prompts.masked_fill(is_end[..., None], 0)
    outputs = call(*given), call(*(without if x is prompts else x for x in given))
    features, other = (x[0] if isinstance(x, (tuple, list)) else x for x in outputs)
    if bool((features == other).all(-1).any()):
        raise UserError(
            f"{name} reads features elsewhere than at EOT, which the anchors move by {n_anchors}: "
            "it must find EOT when it is called, as tokenized_prompts.argmax(-1), and not use "
            "positions from before"
        )


def _prompts_in(given: tuple[Any, ...], end: Tensor) -> Tensor | None:
    """The prompts (…, C, L, d) among arguments, or None."""
    tensors = (x for x in given if isinstance(x, Tensor) and x.dim() > 2)
    return next((x for x in tensors if x.shape[-1:] == end.shape), None)


def end_at(prompts: Tensor, tokens: Tensor, end: Tensor) -> Tensor:
    """Return a boolean scalar: whether all prompts have EOT where ``tokens`` have it."""
    rows = torch.tensor(eot_of(tokens)).to(prompts.device, non_blocking=True)
    index = rows[:, None, None].expand(-1, 1, prompts.shape[-1])
    index = index.expand(*prompts.shape[:-2], 1, -1)
    found = prompts.detach().gather(-2, index).squeeze(-2)
    return (found == end.to(found, non_blocking=True)).all()

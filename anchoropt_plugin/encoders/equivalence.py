"""The fast text branch beside a host's own encoder, once, on the real classes: may it stand in?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from .text_tower import TextTower

Branch: TypeAlias = Callable[..., Tensor | None]
"""Features (…, C, e) from prompts (…, C, L, d), tokens (C, L) and maybe a list of deep prompts."""

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}
"""Largest relative error of features against the encoder's own, by the dtype of its weights."""
HALF_TOLERANCE = 3e-2
CALL_ERRORS = (AttributeError, IndexError, RuntimeError, TypeError, ValueError)
"""What a call raises that an encoder is not made for, as one with something for each class."""
CHECKED_CLASSES = 64


class Finding(NamedTuple):
    """What a comparison came to.

    Attributes:
        error: the relative error of the fast branch's features; None where it gave none.
        objection: why it must not stand in, or "".
    """

    error: float | None
    objection: str


@torch.no_grad()
def compare(
    encoder: nn.Module,
    own: Branch,
    fast: Branch,
    prompts: Tensor,
    tokens: Tensor,
    *deep: Sequence[Tensor],
) -> Finding:
    """Compare both branches on (some of) the classes, the one with the longest name among them.

    Args:
        encoder: the host's, whose parameters and dropouts are looked at.
        own: its own forward.
        fast: the branch that may stand in; what it cannot read it may refuse with an exception,
            and None says that it does not apply.
        prompts, tokens, deep: what the encoder was called with; of several sets of prompts, as one
            an image, the first is compared.
    """
    prompts, tokens = _sample(prompts.detach(), tokens)
    # Both sides in full: autocast rounds them differently, by much more than the tolerance.
    with torch.autocast(prompts.device.type, enabled=False):
        name = type(encoder).__name__
        try:
            want = own(prompts, tokens, *deep)
            features = fast(prompts, tokens, *deep)
        except CALL_ERRORS as refusal:
            return Finding(None, f"it cannot read {name} ({refusal})")
        if features is None:
            return Finding(None, f"deep prompts and contexts of each class meet in {name}")
        assert want is not None
        error = float((features.float() - want.float()).norm() / want.float().norm())
        # Written so that NaN is no agreement.
        if not error <= TOLERANCE.get(TextTower(encoder).dtype, HALF_TOLERANCE):
            return Finding(error, f"it differs from {name} by {error:.1e}")
        missed = _dropouts(encoder) + _missed_parameters(encoder, own, fast, prompts, tokens, *deep)
        return Finding(error, f"it does not read {missed[0]} of {name}" if missed else "")


def _sample(prompts: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    n_classes = len(tokens)
    some = torch.linspace(0, n_classes - 1, min(n_classes, CHECKED_CLASSES)).long()
    some[-1] = tokens.argmax(-1).argmax()
    prompts = prompts.flatten(0, -4)[0] if prompts.dim() > 3 else prompts
    return prompts[some.to(prompts.device)], tokens[some.to(tokens.device)]


def _dropouts(encoder: nn.Module) -> list[str]:
    """Names of the modules that drop something at random while they train."""

    def drops(module: nn.Module) -> bool:
        if isinstance(module, nn.MultiheadAttention):
            return module.dropout > 0
        return isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0

    return [name for name, module in encoder.named_modules() if drops(module)]


@torch.inference_mode(False)
def _missed_parameters(
    encoder: nn.Module,
    own: Branch,
    fast: Branch,
    prompts: Tensor,
    tokens: Tensor,
    *deep: Sequence[Tensor],
) -> list[str]:
    """Names of trained parameters that get a gradient by the encoder's own forward alone.

    They may change features later though they do not yet, as adapters that start at zero.
    """
    trained = {name: p for name, p in encoder.named_parameters() if p.requires_grad}
    if not trained:
        return []
    prompts = prompts.clone()  # one of inference mode is in no graph

    def reached(branch: Branch) -> set[str]:
        with torch.enable_grad():
            features = branch(prompts, tokens, *deep)
        if features is None or not features.requires_grad:
            return set()
        upstream = torch.randn(features.shape, generator=torch.Generator().manual_seed(0))
        gradients = torch.autograd.grad(
            features, list(trained.values()), upstream.to(features), allow_unused=True
        )
        found = zip(trained, gradients, strict=True)
        return {name for name, gradient in found if gradient is not None and gradient.any()}

    return sorted(reached(own) - reached(fast))

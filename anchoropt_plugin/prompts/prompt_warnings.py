"""Warnings about the prompts of a learner, told once: the context may stand elsewhere."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from ..encoders.shared_prefix import leaves

log = logging.getLogger("anchoropt_plugin")


class PromptWarnings:
    """Looks at the first prompts of a learner, and at its first ones that have a graph."""

    def __init__(self) -> None:
        self._is_suffix_checked = self._is_context_checked = False

    def __call__(self, learner: Any, context: Tensor, rest: Tensor) -> None:
        """Look at a context (…, C, M, d) and at the tokens (…, C, L − 1 − M, d) behind it."""
        self._check_suffix(learner, context, rest)
        self._check_context(learner, context)

    def _check_context(self, learner: Any, context: Tensor) -> None:
        """Warn if tokens of the context are not learned, but others are."""
        has_graph = context.requires_grad and torch.is_grad_enabled()
        if self._is_context_checked or not has_graph or torch.compiler.is_compiling():
            return
        self._is_context_checked = True
        sources = list(leaves(context))
        weights = torch.linspace(1, 2, context.shape[-1]).to(context)

        def is_learned(token: Tensor) -> bool:
            total = (token * weights).sum()
            found = torch.autograd.grad(total, sources, retain_graph=True, allow_unused=True)
            return any(g is not None and bool(g.any()) for g in found)

        fixed = [row for row, token in enumerate(context.unbind(-2), 1) if not is_learned(token)]
        if fixed:
            log.warning(
                "of the %d context tokens of %s, number %s depend on nothing that is trained: are "
                "first and n_ctx of its PromptHook right?",
                context.shape[-2],
                type(learner).__name__,
                ", ".join(map(str, fixed)),
            )

    def _check_suffix(self, learner: Any, context: Tensor, rest: Tensor) -> None:
        """Warn if the class names of ``token_suffix`` do not follow the context."""
        suffix = getattr(learner, "token_suffix", None)
        if self._is_suffix_checked or not isinstance(suffix, Tensor):
            return
        self._is_suffix_checked = True
        if rest.shape[-3:] == suffix.shape and not torch.equal(
            rest.flatten(0, -4)[0] if rest.dim() > 3 else rest, suffix.to(rest)
        ):
            log.warning(
                "in the prompts of %s, token_suffix does not follow the %d soft tokens: if class "
                "names are elsewhere, the position matrix moves their tokens",
                type(learner).__name__,
                context.shape[-2],
            )

"""The hook interface: where a prompt learner keeps its context, and how its host uses it.

A learner of the CoOp family holds ``token_prefix`` (C, 1, d), ``token_suffix`` (C, 76 − M, d) and
``tokenized_prompts`` (C, 77). Its ``forward`` returns prompts (…, C, 77, d) of
[SOS] context [class name] . [EOT] and padding, alone or first in a tuple. So the context stands
between prefix and suffix, whatever the learner's own parameters are called.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..encoders.deep_prompts import DeepPrompt, DeepPromptFinder
from ..encoders.image_features import unprompted
from ..errors import UserError
from .eot import check_not_moved


class PromptHook:
    """Where a prompt learner keeps its context, and how its host uses it.

    Subclass it for learners of another kind; ``register_hook`` says for which class it holds. Each
    method gets the learner as it is.
    """

    def dim(self, learner: Any) -> int:
        """Return the width d of a token."""
        return int(learner.token_prefix.shape[-1])

    def n_ctx(self, learner: Any) -> int:
        """Return the number M of soft tokens in a context."""
        return int(learner.tokenized_prompts.shape[-1] - 1 - learner.token_suffix.shape[1])

    def first(self, learner: Any) -> int:
        """Return the position of the first soft token in a prompt."""
        return int(learner.token_prefix.shape[1])

    def tokens(self, learner: Any) -> Tensor:
        """Return the tokens (C, 77) in which the host finds EOT; ``attach`` shifts them."""
        tokens: Tensor = learner.tokenized_prompts
        return tokens

    def end(self, learner: Any) -> Tensor | None:
        """Return the embedding (d,) of EOT, by which EOT is found in prompts; None skips that.

        The learner's prompts have no anchors yet.
        """
        suffix = getattr(learner, "token_suffix", None)
        tokens, stop = self.tokens(learner), self.first(learner) + self.n_ctx(learner)
        row = int(tokens[0].argmax()) - stop
        if not isinstance(suffix, Tensor) or not 0 <= row < suffix.shape[1]:
            return None
        if stop + suffix.shape[1] != tokens.shape[1]:
            raise UserError(
                f"{type(self).__name__} ends the context at token {stop}, but token_suffix of "
                f"{type(learner).__name__} has the last {suffix.shape[1]} of {tokens.shape[1]} "
                "tokens: its first and n_ctx must fit, or give it a method end of its own"
            )
        check_not_moved(type(learner).__name__, tokens[0, stop + row :], suffix[0, row:])
        return suffix[0, row].detach()

    def missing(self, learner: Any) -> list[str]:
        """Return the names of the tensors that this hook needs and the learner lacks."""
        needed = ("token_prefix", "token_suffix", "tokenized_prompts")
        return [name for name in needed if not isinstance(getattr(learner, name, None), Tensor)]

    def check(self, learner: Any) -> None:
        """Raise ``UserError`` if this hook does not fit the learner."""
        own, kind = type(self).__name__, type(learner).__name__
        missing = self.missing(learner)
        if missing:
            advice = "a prompt learner needs them, or a PromptHook of its own (register_hook)"
            if type(self) is not PromptHook:
                advice = f"the method missing of {own} says that it needs them"
            raise UserError(f"{kind} has no tensor {', '.join(missing)}: {advice}")
        failing: dict[str, str] = {}
        for method in (self.dim, self.n_ctx, self.first, self.tokens):
            try:
                method(learner)
            except AttributeError as error:
                failing[method.__name__] = str(error)
        if failing:
            raise UserError(
                f"{own} must override {', '.join(failing)} for the tensors that {kind} has: "
                + "; ".join(dict.fromkeys(failing.values()))
            )
        place = getattr(learner, "class_token_position", "end")
        if place != "end":
            raise UserError(
                f"{type(learner).__name__} has its class token at {place!r}: AnchorOPT arranges a "
                "context before the class name, so use the class token position 'end'"
            )

    def deep_prompts(
        self, finder: DeepPromptFinder, given: Sequence[Tensor]
    ) -> tuple[DeepPrompt, ...]:
        """Return what the host writes over hidden states of the context, and before which blocks.

        Args:
            finder: watched a call of the host's text encoder.
            given: the list of deep prompts in that call, if any.
        """
        return finder.found(given)

    def is_prompt_logits(self, logits: Tensor, n_images: int, n_classes: int) -> bool:
        """Whether a cross-entropy of the host takes the prompt's logits l_n, (B, C)."""
        return logits.shape == (n_images, n_classes)

    def is_of_prompt_loss(self, logits: Tensor, n_images: int, n_classes: int) -> bool:
        """Whether a further cross-entropy belongs to the prompt's loss, with the same weight.

        All others stay the host's.
        """
        return False

    def plain_features(self, encoder: nn.Module, args: tuple[Any, ...], output: Any) -> Tensor:
        """Return features (B, e) of the plain CLIP, given a call of the host's image encoder."""
        return unprompted(encoder, args, output)


_HOOKS: dict[type[nn.Module], PromptHook] = {}


def register_hook(learner_type: type[nn.Module], hook: PromptHook) -> None:
    """Use ``hook`` for learners of ``learner_type`` and its subclasses.

    Raises:
        ValueError: the type already has a hook.
    """
    if learner_type in _HOOKS:
        raise ValueError(f"{learner_type.__name__} already has a hook: {_HOOKS[learner_type]!r}")
    _HOOKS[learner_type] = hook


def hook_for(learner: nn.Module) -> PromptHook:
    """Return the hook of the learner's class or its nearest base, else the usual one."""
    for base in type(learner).__mro__:
        if base in _HOOKS:
            return _HOOKS[base]
    return PromptHook()


def is_prompt_learner(module: nn.Module) -> bool:
    """Whether ``module`` has a registered hook, or the tensors that the usual hook needs."""
    registered = any(base in _HOOKS for base in type(module).__mro__)
    return registered or not PromptHook().missing(module)

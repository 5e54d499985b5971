"""The hook interface: put an ``AnchorPositionModule`` on a prompt learner, and take it off again.

A learner of the CoOp family holds ``token_prefix`` (C, 1, d), ``token_suffix`` (C, 76 − M, d) and
``tokenized_prompts`` (C, 77), and its ``forward`` returns prompts (…, C, 77, d) of
[SOS] context [class name] . [EOT] and padding, alone or first in a tuple. Its context is therefore
what stands between prefix and suffix, whatever the learner's own parameters are called. A forward
hook arranges it there, so no line, parameter name or checkpoint of the learner changes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..encoders.deep_prompts import DeepPrompt, DeepPromptFinder
from ..encoders.image_features import unprompted
from ..errors import UserError
from ..method.position import AnchorPositionModule

log = logging.getLogger("anchoropt_plugin")

CHILD = "anchoropt"
"""The name under which the module is added to a learner."""

POOLINGS = ("eot", "unshifted")


class PromptHook:
    """Where a learner keeps its context, and how its host goes about it; subclass it for others.

    The methods see the learner as it is; ``register_hook`` says for which class they hold.
    """

    def dim(self, learner: Any) -> int:
        """The width d of a token."""
        return int(learner.token_prefix.shape[-1])

    def n_ctx(self, learner: Any) -> int:
        """Soft tokens M of a context."""
        return int(learner.tokenized_prompts.shape[-1] - 1 - learner.token_suffix.shape[1])

    def first(self, learner: Any) -> int:
        """The position of the first soft token in a prompt."""
        return int(learner.token_prefix.shape[1])

    def tokens(self, learner: Any) -> Tensor:
        """The tokens (C, 77) that the host finds EOT by; they are shifted in place."""
        tokens: Tensor = learner.tokenized_prompts
        return tokens

    def end(self, learner: Any) -> Tensor | None:
        """The embedding (d,) of EOT, by which it is found in prompts; None leaves that out.

        The learner's prompts are as the host lays them out, without anchors.
        """
        suffix = getattr(learner, "token_suffix", None)
        row = int(self.tokens(learner)[0].argmax()) - self.first(learner) - self.n_ctx(learner)
        if not isinstance(suffix, Tensor) or not 0 <= row < suffix.shape[1]:
            return None
        return suffix[0, row].detach()

    def missing(self, learner: Any) -> list[str]:
        """The tensors that this hook needs and the learner lacks."""
        needed = ("token_prefix", "token_suffix", "tokenized_prompts")
        return [name for name in needed if not isinstance(getattr(learner, name, None), Tensor)]

    def check(self, learner: Any) -> None:
        """Raise ``UserError`` where this hook does not fit the learner."""
        missing = self.missing(learner)
        if missing:
            raise UserError(
                f"{type(learner).__name__} has no tensor {', '.join(missing)}: a prompt learner "
                "needs them, or a PromptHook of its own (register_hook)"
            )
        place = getattr(learner, "class_token_position", "end")
        if place != "end":
            raise UserError(
                f"{type(learner).__name__} has its class token at {place!r}: AnchorOPT arranges a "
                "context that stands before the class name, so use CLASS_TOKEN_POSITION end"
            )

    def deep_prompts(
        self, finder: DeepPromptFinder, given: Sequence[Tensor]
    ) -> tuple[DeepPrompt, ...]:
        """What the host writes over the context's hidden states, and before which text blocks.

        Args:
            finder: at a call of the host's text encoder.
            given: the list of deep prompts that it was called with, if any.
        """
        return finder.found(given)

    def is_prompt_logits(self, logits: Tensor, n_images: int, n_classes: int) -> bool:
        """Whether a cross-entropy of the host's is over the prompt's logits l_n, (B, C)."""
        return logits.shape == (n_images, n_classes)

    def plain_features(self, encoder: nn.Module, args: tuple[Any, ...], output: Any) -> Tensor:
        """Features (B, e) of the plain CLIP, given a call of the host's image encoder."""
        return unprompted(encoder, args, output)


_HOOKS: dict[type[nn.Module], PromptHook] = {}


def register_hook(learner_type: type[nn.Module], hook: PromptHook) -> None:
    """Use ``hook`` for learners of ``learner_type`` and its subclasses.

    Raises:
        ValueError: the type has a hook already.
    """
    if learner_type in _HOOKS:
        raise ValueError(f"{learner_type.__name__} has a hook already: {_HOOKS[learner_type]!r}")
    _HOOKS[learner_type] = hook


def hook_for(learner: nn.Module) -> PromptHook:
    """The hook registered for the learner's class or its nearest base, else the usual one."""
    for base in type(learner).__mro__:
        if base in _HOOKS:
            return _HOOKS[base]
    return PromptHook()


def is_prompt_learner(module: nn.Module) -> bool:
    """Whether ``module`` has a hook registered, or the tensors that the usual one needs."""
    registered = any(base in _HOOKS for base in type(module).__mro__)
    return registered or not PromptHook().missing(module)


def attached(learner: nn.Module) -> AnchorPositionModule | None:
    """The module that ``attach`` put on ``learner``, or None."""
    return learner._modules.get(CHILD)  # type: ignore[return-value]


def attach(
    learner: Any, anchors: Tensor, *, pooling: str = "eot", **position: Any
) -> AnchorPositionModule:
    """Make every prompt of ``learner`` carry the context ``P · [context; anchors]``.

    The prompt grows by K tokens: the class name moves right, the last K positions, which must be
    padding, are dropped, and ``tokenized_prompts`` is shifted in place, so that features are
    pooled at the true EOT wherever the host holds that tensor. The module becomes the submodule
    ``anchoropt`` of the learner and so is trained, moved and saved with it.

    Args:
        learner: a prompt learner as the module's docstring describes it.
        anchors: anchor tokens (K, d).
        pooling: "eot", or "unshifted", which leaves ``tokenized_prompts`` as it is, so that
            features are read K tokens before EOT as in the released code.
        position: further arguments of ``AnchorPositionModule``.

    Returns:
        The module; ``detach`` takes it off.

    Raises:
        UserError: the learner is of another kind, carries anchors already, or a prompt has no room
            for K more tokens.

    >>> class Learner(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.ctx = nn.Parameter(torch.zeros(2, 4))
    ...         self.token_prefix, self.token_suffix = torch.ones(3, 1, 4), torch.ones(3, 5, 4)
    ...         self.tokenized_prompts = torch.tensor([[9, 1, 1, 5, 99, 0, 0, 0]] * 3)
    ...     def forward(self):
    ...         context = self.ctx.expand(3, -1, -1)
    ...         return torch.cat([self.token_prefix, context, self.token_suffix], 1)
    >>> learner = Learner()
    >>> module = attach(learner, torch.full((1, 4), 7.0)).eval()
    >>> learner()[0, :, 0].tolist()
    [1.0, 0.0, 0.0, 7.0, 1.0, 1.0, 1.0, 1.0]
    >>> detach(learner)
    >>> learner()[0, :, 0].tolist()
    [1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    """
    hook = hook_for(learner)
    hook.check(learner)
    if pooling not in POOLINGS:
        raise ValueError(f"unknown pooling {pooling!r}: one of {', '.join(POOLINGS)}")
    if attached(learner) is not None:
        raise UserError(f"{type(learner).__name__} carries anchors already: detach it first")
    width = hook.dim(learner)
    if anchors.shape[-1] != width:
        raise UserError(
            f"anchors of width {anchors.shape[-1]} do not fit a prompt of width {width}: "
            "they were learned on another backbone"
        )
    tokens = hook.tokens(learner)
    n_anchors = len(anchors)
    if n_anchors and bool(tokens[:, -n_anchors:].any()):
        full = int(tokens[:, -n_anchors:].any(-1).nonzero()[0])
        raise UserError(
            f"the prompt of class {full} has no room for {n_anchors} more tokens in "
            f"{tokens.shape[-1]}: shorten the class name or the context"
        )
    module: Any = AnchorPositionModule(hook.n_ctx(learner), anchors, **position)
    module.to(_device(learner)).train(learner.training)
    module.end = hook.end(learner) if pooling == "eot" else None
    if pooling == "eot":
        shift(tokens, hook.first(learner), n_anchors)
    module.shifted_tokens = pooling == "eot"
    module.is_followed_as_told = False
    learner.add_module(CHILD, module)
    module.hook_handle = learner.register_forward_hook(_arrange)
    return cast(AnchorPositionModule, module)


def detach(learner: Any) -> None:
    """Take off what ``attach`` put on; the learner is as before, bit for bit.

    Raises:
        UserError: nothing is attached.
    """
    module: Any = attached(learner)
    if module is None:
        raise UserError(f"{type(learner).__name__} carries no anchors: nothing to detach")
    module.hook_handle.remove()
    if module.shifted_tokens:
        hook = hook_for(learner)
        unshift(hook.tokens(learner), hook.first(learner), module.n_anchors)
    delattr(learner, CHILD)


def _device(learner: nn.Module) -> torch.device:
    return next(chain(learner.parameters(), learner.buffers())).device


def shift(tokens: Tensor, first: int, by: int) -> None:
    """Repeat the token at ``first`` ``by`` times more, in place; the last ``by`` go."""
    tokens[:, first + by :] = tokens[:, first : tokens.shape[1] - by].clone()
    tokens[:, first : first + by] = tokens[:, first + by : first + by + 1]


def unshift(tokens: Tensor, first: int, by: int) -> None:
    """Undo ``shift``; the last ``by`` become padding."""
    tokens[:, first : tokens.shape[1] - by] = tokens[:, first + by :].clone()
    tokens[:, tokens.shape[1] - by :] = 0


def _arrange(learner: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    """The forward hook: a plain function, so that a learner can still be copied and pickled."""
    module = attached(learner)
    assert module is not None
    first = hook_for(learner).first(learner)
    prompts = output[0] if isinstance(output, (tuple, list)) else output
    if not isinstance(prompts, Tensor):
        raise UserError(
            f"{type(learner).__name__} returns a {type(output).__name__}: want prompts "
            "(..., classes, tokens, width), alone or first in a tuple"
        )
    stop = first + module.n_ctx
    _tell_what_follows(learner, module, prompts[..., stop:, :])

    def arranged(prompts: Tensor) -> Tensor:
        n_rest = prompts.shape[-2] - stop - module.n_anchors
        sizes = [first, module.n_ctx, n_rest, module.n_anchors]
        # Slices would each take a gradient of the size of all prompts; the parts of a split one.
        head, context, rest, _ = prompts.split(sizes, -2)
        return torch.cat([head, module(context), rest], -2)

    if isinstance(output, Tensor):
        return arranged(output)
    same = [x for x in output if _goes_on_as(x, prompts, stop)]
    # At once, as a call of the module draws a matrix.
    done = iter(arranged(torch.cat(same, -3)).split([x.shape[-3] for x in same], -3))
    outputs = [next(done) if any(x is y for y in same) else x for x in output]
    return outputs if isinstance(output, list) else tuple(outputs)


def _goes_on_as(other: Any, prompts: Tensor, stop: int) -> bool:
    """Whether ``other`` is ``prompts``, or those of further classes behind the same context."""
    if other is prompts:
        return True
    if not isinstance(other, Tensor) or other.dim() != prompts.dim():
        return False
    if other.requires_grad != prompts.requires_grad:  # as a template's, which are the same at first
        return False
    shapes = (x.shape[:-3] + x.shape[-2:] for x in (other, prompts))
    starts = (x[..., 0, :stop, :] for x in (other, prompts))
    return len(set(shapes)) == 1 and other.shape[-3] > 0 and torch.equal(*starts)


def _tell_what_follows(learner: Any, module: Any, rest: Tensor) -> None:
    """Warn, once, where the context is not followed by the class names as they are."""
    suffix = getattr(learner, "token_suffix", None)
    if module.is_followed_as_told or not isinstance(suffix, Tensor):
        return
    module.is_followed_as_told = True
    if rest.shape[-3:] == suffix.shape and not torch.equal(
        rest.flatten(0, -4)[0] if rest.dim() > 3 else rest, suffix.to(rest)
    ):
        log.warning(
            "the prompts of %s do not go on with token_suffix behind %d soft tokens: if its class "
            "names stand elsewhere, the position matrix moves their tokens",
            type(learner).__name__,
            module.n_ctx,
        )

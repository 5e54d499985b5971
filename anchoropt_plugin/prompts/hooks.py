"""The hook interface: put an ``AnchorPositionModule`` on a prompt learner, and take it off again.

A learner of the CoOp family holds ``token_prefix`` (C, 1, d), ``token_suffix`` (C, 76 − M, d) and
``tokenized_prompts`` (C, 77). Its ``forward`` returns prompts (…, C, 77, d) of
[SOS] context [class name] . [EOT] and padding, alone or first in a tuple. So the context stands
between prefix and suffix, whatever the learner's own parameters are called. A ``forward`` on the
object, before that of its class, arranges the context there: no line, parameter name or checkpoint
of the learner changes. Not a forward hook: some hosts call ``learner.forward()``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ..encoders.deep_prompts import DeepPrompt, DeepPromptFinder
from ..encoders.image_features import unprompted
from ..errors import UserError
from ..files.checkpoint_folder import CHILD
from ..method.position import POOLINGS, AnchorPositionModule
from .eot import MovedTokens, check_not_moved, shift, unshift
from .loaded_names import LoadedNames
from .prompt_warnings import PromptWarnings

log = logging.getLogger("anchoropt_plugin")


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


@dataclass(eq=False)
class Attachment:
    """An ``AnchorPositionModule`` on a learner, whose ``forward`` it is: it arranges the prompts.

    Attributes:
        module: arranges soft and anchor tokens; the learner's submodule ``anchoropt``.
        hook: describes the learner.
        moved: the tokens in which EOT was moved, or None.
        names: looks at loaded states, or None if the embedding of EOT is not known.
    """

    module: AnchorPositionModule
    hook: PromptHook
    moved: MovedTokens | None = None
    names: LoadedNames | None = None
    _own: Callable[..., Any] | None = None
    _warnings: PromptWarnings = field(default_factory=PromptWarnings)

    @property
    def end(self) -> Tensor | None:
        """Return the embedding (d,) of EOT, by which a moved EOT is found in prompts."""
        return None if self.moved is None else self.moved.end

    def put_on(self, learner: Any) -> None:
        """Put the module and the ``forward`` on ``learner``."""
        learner.add_module(CHILD, self.module)
        self._own = vars(learner).get("forward")  # somebody may have put one there
        learner.forward = partial(self, learner)
        if self.names is not None:
            self.names.put_on(learner, self.hook.tokens(learner))

    def take_off(self, learner: Any) -> None:
        """Undo ``put_on``."""
        del learner.forward
        if self._own is not None:
            learner.forward = self._own
        delattr(learner, CHILD)
        if self.names is not None:
            self.names.take_off()

    def __call__(self, learner: nn.Module, *args: Any, **named: Any) -> Any:
        """Return what the learner's own ``forward`` returns, with arranged prompts."""
        forward = self._own or partial(type(learner).forward, learner)
        return self._arranged(learner, forward(*args, **named))

    def _arranged(self, learner: nn.Module, output: Any) -> Any:
        prompts = output[0] if isinstance(output, (tuple, list)) else output
        if not isinstance(prompts, Tensor):
            raise UserError(
                f"{type(learner).__name__} returns a {type(output).__name__}: expected prompts "
                "(..., classes, tokens, width), alone or first in a tuple"
            )
        first = self.hook.first(learner)
        stop = first + self.module.n_ctx
        self._check_length(learner, prompts)
        self._warnings(learner, prompts[..., first:stop, :], prompts[..., stop:, :])

        def arranged(prompts: Tensor) -> Tensor:
            n_rest = prompts.shape[-2] - stop - self.module.n_anchors
            sizes = [first, self.module.n_ctx, n_rest, self.module.n_anchors]
            # split: the backward pass of each slice would fill a tensor of all prompts' size.
            head, context, rest, _ = prompts.split(sizes, -2)
            return torch.cat([head, self.module(context), rest], -2)

        if isinstance(output, Tensor):
            return self._checked(learner, arranged(output))
        same = [x for x in output if _has_same_context(x, prompts, stop)]
        # In one call, as each call of the module draws a position matrix.
        done = iter(arranged(torch.cat(same, -3)).split([x.shape[-3] for x in same], -3))
        outputs = [next(done) if any(x is y for y in same) else x for x in output]
        self._checked(learner, outputs[0])
        return outputs if isinstance(output, list) else tuple(outputs)

    def _check_length(self, learner: Any, prompts: Tensor) -> None:
        """Raise ``UserError`` if the context has another length than at ``attach``."""
        length, n_ctx = self.hook.tokens(learner).shape[-1], self.hook.n_ctx(learner)
        if prompts.shape[-2] != length or n_ctx != self.module.n_ctx:
            raise UserError(
                f"{type(learner).__name__} makes prompts of {prompts.shape[-2]} tokens with "
                f"{n_ctx} soft tokens, but was attached with {self.module.n_ctx} in {length}: "
                "detach, change the soft tokens, and attach again"
            )

    def _checked(self, learner: Any, prompts: Tensor) -> Tensor:
        """Return arranged prompts, after a comparison with tokens that have changed."""
        if self.moved is not None:
            self.moved.check(type(learner).__name__, self.hook.tokens(learner), prompts)
        return prompts


def _has_same_context(other: Any, prompts: Tensor, stop: int) -> bool:
    """Whether ``other`` is ``prompts``, or prompts of further classes with the same context."""
    if other is prompts:
        return True
    if not isinstance(other, Tensor) or other.dim() != prompts.dim():
        return False
    if other.requires_grad != prompts.requires_grad:  # a template has the same values at first
        return False
    shapes = (x.shape[:-3] + x.shape[-2:] for x in (other, prompts))
    starts = (x[..., 0, :stop, :] for x in (other, prompts))
    return len(set(shapes)) == 1 and other.shape[-3] > 0 and torch.equal(*starts)


def attachment_of(learner: nn.Module) -> Attachment | None:
    """Return what ``attach`` put on ``learner``, or None."""
    forward = getattr(vars(_uncompiled(learner)).get("forward"), "func", None)
    return forward if isinstance(forward, Attachment) else None


def _uncompiled(learner: Any) -> Any:
    """Return the module that ``torch.compile`` was given, or ``learner``."""
    return getattr(learner, "_orig_mod", learner)


def attached(learner: nn.Module) -> AnchorPositionModule | None:
    """Return the module that ``attach`` put on ``learner``, or None.

    >>> attached(nn.Linear(2, 2)) is None
    True
    """
    attachment = attachment_of(learner)
    return None if attachment is None else attachment.module


def attach(
    learner: Any, anchors: Tensor, *, pooling: str = "eot", **position: Any
) -> AnchorPositionModule:
    """Make every prompt of ``learner`` carry the context ``P · [context; anchors]``.

    The prompt grows by K tokens: the class name moves right, and the last K positions, which must
    be padding, are dropped. ``tokenized_prompts`` is shifted in place, so that features are read at
    the true EOT wherever the host holds that tensor. The module becomes the learner's submodule
    ``anchoropt``, and so is trained, moved and saved with the learner. Afterwards
    ``load_state_dict`` raises ``UserError`` for a state that has the embeddings of other class
    names, as ``token_suffix``, but not their tokens.

    Args:
        learner: a prompt learner with the tensors that its ``PromptHook`` needs.
        anchors: anchor tokens (K, d).
        pooling: "eot", or "unshifted": ``tokenized_prompts`` stays as it is, so that features are
            read K tokens before EOT, as in the released code.
        position: further arguments of ``AnchorPositionModule``.

    Returns:
        The module; ``detach`` takes it off.

    Raises:
        ValueError: ``pooling`` is unknown, or ``AnchorPositionModule`` refuses an argument.
        UserError: the learner is of another kind, its hook does not fit it, it already carries
            anchors, ``anchors`` are no tensor (K, d), a prompt has no room for K more tokens, or
            EOT was moved in its tokens before.

    >>> class Learner(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.ctx = nn.Parameter(torch.zeros(2, 4))
    ...         self.tokenized_prompts = torch.tensor([[9, 1, 1, 5, 99, 0, 0, 0]] * 3)
    ...         embedded = self.tokenized_prompts[..., None].expand(-1, -1, 4).float()
    ...         self.token_prefix, self.token_suffix = embedded[:, :1], embedded[:, 3:]
    ...     def forward(self):
    ...         context = self.ctx.expand(3, -1, -1)
    ...         return torch.cat([self.token_prefix, context, self.token_suffix], 1)
    >>> learner = Learner()
    >>> module = attach(learner, torch.full((1, 4), 7.0)).eval()
    >>> learner()[0, :, 0].tolist()
    [9.0, 0.0, 0.0, 7.0, 5.0, 99.0, 0.0, 0.0]
    >>> detach(learner)
    >>> learner()[0, :, 0].tolist()
    [9.0, 0.0, 0.0, 5.0, 99.0, 0.0, 0.0, 0.0]
    """
    learner = _uncompiled(learner)
    hook = hook_for(learner)
    hook.check(learner)
    if pooling not in POOLINGS:
        raise ValueError(f"unknown pooling {pooling!r}: one of {', '.join(POOLINGS)}")
    if attached(learner) is not None:
        raise UserError(f"{type(learner).__name__} already carries anchors: detach them first")
    if not isinstance(anchors, Tensor) or anchors.dim() != 2:
        given = tuple(anchors.shape) if isinstance(anchors, Tensor) else type(anchors).__name__
        raise UserError(
            f"anchors are {given}: give a tensor (K, d), such as the values of AnchorTokens"
        )
    width = hook.dim(learner)
    if anchors.shape[-1] != width:
        raise UserError(
            f"anchors of width {anchors.shape[-1]} do not fit a prompt of width {width}: "
            "they were learned on another backbone"
        )
    tokens = hook.tokens(learner)
    if pooling == "eot" and tokens.data_ptr() != hook.tokens(learner).data_ptr():
        raise UserError(
            f"tokens of {type(hook).__name__} returns a copy: it must return the tensor in which "
            "the host finds EOT, which moves there"
        )
    n_anchors = len(anchors)
    if n_anchors and bool(tokens[:, -n_anchors:].any()):
        full = int(tokens[:, -n_anchors:].any(-1).nonzero()[0])
        raise UserError(
            f"the prompt of class {full} has no room for {n_anchors} more tokens in "
            f"{tokens.shape[-1]}: shorten the class name or the context"
        )
    module = AnchorPositionModule(hook.n_ctx(learner), anchors, **position)
    module.to(next(chain(learner.parameters(), learner.buffers())).device).train(learner.training)
    module.pooling = pooling
    attachment = Attachment(module, hook)
    end = hook.end(learner)
    if end is not None:
        # A copy: a state that is loaded in place must not change what it is compared with.
        end = end.clone()
        attachment.names = LoadedNames(end)
    if pooling == "eot":
        shift(tokens, hook.first(learner), n_anchors)
        attachment.moved = MovedTokens(tokens, end)
    attachment.put_on(learner)
    return module


def detach(learner: Any) -> None:
    """Take off what ``attach`` put on; the learner is as before, bit for bit.

    Raises:
        UserError: nothing is attached.
    """
    learner = _uncompiled(learner)
    attachment = attachment_of(learner)
    if attachment is None:
        raise UserError(f"{type(learner).__name__} carries no anchors: nothing to detach")
    attachment.take_off(learner)
    if attachment.moved is not None:
        hook = attachment.hook
        unshift(hook.tokens(learner), hook.first(learner), attachment.module.n_anchors)

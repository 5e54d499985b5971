"""Put an ``AnchorPositionModule`` on a prompt learner, and take it off again.

A ``forward`` on the object, before that of its class, arranges the context in the prompts: no line,
parameter name or checkpoint of the learner changes. Not a forward hook: some hosts call
``learner.forward()``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..files.checkpoint_folder import CHILD
from ..method.position import POOLINGS, AnchorPositionModule
from .eot import MovedTokens, shift, unshift
from .hooks import PromptHook, hook_for
from .loaded_names import LoadedNames
from .prompt_warnings import PromptWarnings


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

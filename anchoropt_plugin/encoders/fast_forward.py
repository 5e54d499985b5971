"""What stands in for a text encoder's forward: the exact fast branch, which checks itself.

A host calls its encoder with prompts that are embedded already and their tokens. The stand-in
finds out how many leading tokens all classes share, runs the packed tower over the rest, and
checks itself once against the host's own encoder on the real classes.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import UserError
from ..method.position import AnchorPositionModule
from ..process import distributed
from ..process.gradients import all_classes
from ..prompts.eot import check_is_read, ending_as_prompts
from ..prompts.hooks import PromptHook
from .deep_prompts import FIRST, DeepPrompt, DeepPromptFinder, arranged, overwriting
from .equivalence import CALL_ERRORS, compare
from .feature_cache import LastFeatures, state_of
from .image_features import none_of
from .shared_prefix import Sharing, equal_tokens, origin, sharing_in_gradient
from .text_tower import Rewrite, TextTower

log = logging.getLogger("anchoropt_plugin")

REMEMBERED = 16
"""Ways in which prompts are computed, of which it is remembered what they share."""


class FastForward:
    """Stands in for the ``forward`` of one text encoder.

    It is called as that is: with prompts (…, C, L, d) and tokens (C, L), and by some hosts with a
    list of deep prompts (n, d); it returns features (…, C, e). Calls with anything else go to the
    host's own forward. At its first call it looks at that, and so learns where deep prompts go.

    Attributes:
        error: the relative error that the check found, or None before it.
        in_use: whether the fast branch is used; the check may put an end to it.
        position: the module on the host's learner, whose layout deep prompts must keep, or None.
        hook: of that learner; it may say where deep prompts are.
        chunk: classes encoded at once, for very many of them; 0 takes all.
        split: whether several processes share the classes while training.
    """

    def __init__(self, encoder: nn.Module) -> None:
        self.encoder = encoder
        self.tower = TextTower(encoder)
        self.error: float | None = None
        self.in_use = True
        self.position: AnchorPositionModule | None = None
        self.hook = PromptHook()
        self.chunk = 0
        self.split = False
        self._deep: dict[int, tuple[DeepPrompt, ...]] = {}
        self._is_end_checked = False
        self._sharing: dict[Hashable, Sharing] = {}
        self._last = LastFeatures()

    @property
    def deep_prompts(self) -> tuple[DeepPrompt, ...]:
        """The host's deep prompts, found when it was called."""
        return max(self._deep.values(), key=len, default=())

    def __call__(self, *args: Any, **named: Any) -> Any:
        forward = type(self.encoder).forward
        call = inspect.signature(forward).bind(self.encoder, *args, **named)
        given = call.args[1:]
        if self.position is not None:
            given, have_anchors = ending_as_prompts(given, self.position)
            if not have_anchors:  # and so no layout to keep
                return self._own_forward(*given, **call.kwargs)
        if call.kwargs or not _is_read(*given):
            return self._unread_forward(*given, **call.kwargs)
        self._look(*given)
        if self.in_use and self.error is None:
            self._check(*given)
        if self.in_use:
            features = self._fast_or_last(*given)
            if features is not None:
                return features
        return self.host_forward(*given)

    @torch.no_grad()
    def _look(self, prompts: Tensor, tokens: Tensor, *deep: Sequence[Tensor]) -> None:
        """Find out where deep prompts go, if there are any, from a call with two classes."""
        given = deep[0] if deep else ()
        if len(given) in self._deep:
            return
        prompts = prompts.flatten(0, -4)[0] if prompts.dim() > 3 else prompts
        with (
            torch.autocast(prompts.device.type, enabled=False),
            DeepPromptFinder(self.encoder) as finder,
        ):
            called = prompts[:2], tokens[:2]
            try:
                self._own_forward(*called, *deep)
            except CALL_ERRORS:  # as where it holds something for each class
                called = prompts, tokens
                self._own_forward(*called, *deep)
        try:
            found = self._deep[len(given)] = self.hook.deep_prompts(finder, given)
            self._check_rows(found, given)
            with torch.autocast(prompts.device.type, enabled=False):
                self._check_end(*called, *deep)
        except UserError as error:
            if self.position is not None:
                raise
            self._deep[len(given)] = ()
            self._stand_back(str(error))
            return
        if len(given) and not found:  # and so something else, which the fast branch cannot read
            self._stand_back(f"{type(self.encoder).__name__} writes nothing it is given over rows")

    def _stand_back(self, reason: str) -> None:
        self.in_use = False
        log.warning("%s: its own forward stays", reason)

    def _check_end(self, *given: Any) -> None:
        """Raise ``UserError`` where features are not read at EOT, which the anchors have moved."""
        if self.position is not None:
            name = type(self.encoder).__name__
            check_is_read(name, self._own_forward, given, self.position)

    def _check_rows(self, found: Sequence[DeepPrompt], given: Sequence[Tensor]) -> None:
        """Raise ``UserError`` where a deep prompt goes beyond the context."""
        if self.position is None:
            return
        for deep in found:
            stop = deep.first + len(deep.read(self.encoder, given))
            if deep.first < FIRST or stop > FIRST + self.position.n_ctx:
                raise UserError(
                    f"{type(self.encoder).__name__} writes a deep prompt over rows {deep.first} to "
                    f"{stop - 1} before text block {deep.block}, but the context has "
                    f"{self.position.n_ctx} tokens from row {FIRST} on"
                )

    def _unread_forward(self, *args: Any, **named: Any) -> Any:
        """The host's own forward, called in a way of its own."""
        if self.position is None:
            return self._own_forward(*args, **named)
        if not self._is_end_checked:
            self._is_end_checked = True
            self._check_end(*args)
        with DeepPromptFinder(self.encoder) as finder:
            features = self._own_forward(*args, **named)
        if finder.found(()):
            raise UserError(
                f"{type(self.encoder).__name__} writes deep prompts over the context and is not "
                "called with (prompts, tokens) or (prompts, tokens, list of deep prompts): the "
                "anchors would be lost there"
            )
        return features

    def _fast_or_last(
        self, prompts: Tensor, tokens: Tensor, deep: Sequence[Tensor] = ()
    ) -> Tensor | None:
        """Without a graph to build, prompts that are those of the last call are not encoded."""
        if torch.is_grad_enabled() or prompts.dim() > 3:
            return self._fast(prompts, tokens, deep)
        position = self.position if self._deep[len(deep)] else None
        layout = [position.matrix()] if position is not None else []
        inputs = [prompts[:, : int(tokens.argmax(-1).max()) + 1], tokens, *deep, *layout]
        state = (*state_of(self.encoder), torch.is_autocast_enabled(prompts.device.type))
        features = self._last.get(inputs, state)
        if features is None:
            features = self._fast(prompts, tokens, deep)
            if features is not None:
                self._last.put(inputs, state, features)
        return features

    def forget(self) -> None:
        """Drop the features of the last call."""
        self._last = LastFeatures()

    def _own_forward(self, *args: Any, **named: Any) -> Any:
        return type(self.encoder).forward(self.encoder, *args, **named)

    def host_forward(self, prompts: Tensor, tokens: Tensor, *deep: Any) -> Tensor:
        """Features by the encoder's own forward, deep prompts in the layout of ``position``."""
        given = deep[0] if deep else ()
        prompted = self._deep.get(len(given))
        if self.position is None or not prompted:
            return self._own_forward(prompts, tokens, *deep)
        with overwriting(self.encoder, self.position, prompted, given):
            return self._own_forward(prompts, tokens, *map(none_of, deep))

    def _fast(self, prompts: Tensor, tokens: Tensor, given: Sequence[Tensor] = ()) -> Tensor | None:
        """Features by the packed tower; None where deep prompts meet contexts that differ."""
        eot = tokens.argmax(-1).tolist()
        sharing = self._shared(prompts, min(eot))
        prompted = {deep.block: deep for deep in self._deep[len(given)]}
        if not prompted:
            return self._encode(prompts, eot, sharing)
        found = {number: deep.read(self.encoder, given) for number, deep in prompted.items()}
        position = self.position
        if position is None:
            start, stop = 0, max(deep.first + len(found[deep.block]) for deep in prompted.values())
        else:
            start, stop = FIRST, FIRST + position.n_ctx + position.n_anchors
        if sharing.n_tokens < stop:
            return None
        # Taken now: a chunk's activations are computed again when another P may be in force.
        matrix = position.matrix() if position is not None else None

        def rewrite(number: int, prefix: Tensor) -> Tensor:
            if number not in prompted:
                return prefix
            first = prompted[number].first - start
            context = arranged(matrix, found[number], prefix[:, start:stop], first)
            return torch.cat([prefix[:, :start], context, prefix[:, stop:]], 1)

        return self._encode(prompts, eot, sharing, rewrite)

    def _encode(self, prompts: Tensor, eot: list[int], *more: Any) -> Tensor:
        """All classes, of which this process may have a part only.

        Prompts of each image's own are not split: no other process has those. Nor is an
        evaluation, which encodes once, and keeps no activations.
        """
        n_classes = len(eot)
        splits = self.split and torch.is_grad_enabled() and prompts.dim() == 3
        if not splits or not 1 < distributed.world_size() <= n_classes:
            return self._encode_here(prompts, eot, *more)
        part = distributed.part_of(n_classes)
        return all_classes(self._encode_here(prompts[part], eot[part], *more), n_classes)

    def _encode_here(
        self, prompts: Tensor, eot: list[int], sharing: Sharing, rewrite: Rewrite | None = None
    ) -> Tensor:
        """All classes at once, or in chunks whose activations the backward pass computes again."""
        if not self.chunk or len(eot) <= self.chunk:
            return self.tower.encode(prompts, eot, *sharing, rewrite)
        n_shared, rest_is_constant = sharing
        # A gradient of all classes' size comes from their shared tokens once, not chunk by chunk.
        shared = prompts[..., :1, :, :][..., :n_shared, :]
        rest = (prompts.detach() if rest_is_constant else prompts)[..., n_shared:, :]

        def encode(shared: Tensor, rest: Tensor, eot: list[int]) -> Tensor:
            rest = rest[..., : max(eot) + 1 - n_shared, :]
            part = torch.cat([shared.expand(*rest.shape[:-2], -1, -1), rest], -2)
            return self.tower.encode(part, eot, *sharing, rewrite)

        parts = [
            # Without a graph to save for it only calls the function.
            checkpoint(
                encode,
                shared,
                part,
                eot[start : start + self.chunk],
                use_reentrant=False,
                preserve_rng_state=False,
            )
            for part, start in zip(
                rest.split(self.chunk, -3), range(0, len(eot), self.chunk), strict=True
            )
        ]
        return torch.cat(parts, -2)

    def _check(self, *given: Any) -> None:
        """Stay in use only where the encoder's own forward gives the same on the real classes."""
        name = type(self.encoder).__name__
        self.error, objection = compare(self.encoder, self.host_forward, self._fast, *given)
        self.in_use = not objection
        if objection:
            log.warning("the fast text branch: %s; its own forward stays", objection)
        else:
            log.info("fast text branch in place of %s (relative error %.0e)", name, self.error)

    def _shared(self, prompts: Tensor, limit: int) -> Sharing:
        """How many leading tokens all classes share, in value, and in gradient where that flows."""
        shared = equal_tokens(prompts[..., :limit, :])
        if not (prompts.requires_grad and torch.is_grad_enabled()):
            return Sharing(shared, rest_is_constant=False)
        source = origin(prompts)
        if source not in self._sharing:
            if len(self._sharing) == REMEMBERED:  # as where every step makes new leaves
                self._sharing.clear()
            self._sharing[source] = sharing_in_gradient(prompts, shared)
        n_tokens, rest_is_constant = self._sharing[source]
        # Where fewer are equal now, some of the rest may carry a gradient.
        return Sharing(min(shared, n_tokens), rest_is_constant and shared >= n_tokens)


def _is_read(*given: Any) -> bool:
    """Whether they are prompts (…, C, L, d), tokens (C, L) and, it may be, deep prompts."""
    if len(given) not in (2, 3) or not all(isinstance(x, Tensor) for x in given[:2]):
        return False
    return given[0].dim() > 2 and given[1].dim() == 2 and all(map(_is_deep, given[2:]))


def _is_deep(argument: Any) -> bool:
    """Whether an argument of a text encoder is deep prompts: a list of (M, d), or them stacked."""
    if isinstance(argument, Tensor):
        return argument.dim() == 3
    if not isinstance(argument, (list, tuple, nn.ParameterList)):
        return False
    return all(isinstance(prompt, Tensor) and prompt.dim() == 2 for prompt in argument)

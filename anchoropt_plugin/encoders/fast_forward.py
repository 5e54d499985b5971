"""``FastForward``: the exact fast branch in place of a text encoder's forward.

A host calls its encoder with embedded prompts and their tokens. ``FastForward`` finds the leading
tokens that all classes share, runs the packed tower over the rest, and compares its features once
with those of the host's own encoder, on the real classes.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Hashable, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import UserError
from ..process import distributed
from ..process.gradients import all_classes
from ..process.late_checks import LateCheck
from .deep_prompts import FIRST, DeepPrompt, DeepPromptFinder, arranged, overwriting
from .equivalence import CALL_ERRORS, CHECKED_AGAIN, CHECKED_CLASSES, compare
from .feature_cache import LastFeatures, state_of
from .host_prompts import HostPrompts
from .image_features import none_of
from .shared_prefix import (
    REMEMBERED,
    Remembered,
    Sharing,
    are_equal,
    eot_of,
    equal_tokens,
    origin,
    sharing_in_gradient,
)
from .text_tower import Rewrite, TextTower

log = logging.getLogger("anchoropt_plugin")


class FastForward:
    """Replaces the ``forward`` of one text encoder; calls it cannot read go to the host's own.

    It takes the same arguments as the encoder's own forward: prompts (…, C, L, d), tokens (C, L),
    and for some hosts a list of deep prompts (n, d). It returns features (…, C, e). On the first
    call it watches the host's forward to find where deep prompts are inserted.

    Args:
        encoder: the text encoder.
        prompts: describes the prompts that the host passes; by default they carry no anchors.
        chunk: classes encoded at once, to bound the memory of thousands of classes; 0 takes all.
        split: whether several processes share the classes while training.
        in_use: False leaves the host's own forward, with deep prompts in the layout of ``prompts``.

    Attributes:
        error: the relative error that the comparison found, or None before it.
        in_use: whether the fast branch is used; the comparison may end that.
    """

    def __init__(
        self,
        encoder: nn.Module,
        prompts: HostPrompts | None = None,
        *,
        chunk: int = 0,
        split: bool = False,
        in_use: bool = True,
    ) -> None:
        self.encoder = encoder
        self.prompts = prompts or HostPrompts()
        self.chunk = chunk
        self.split = split
        self.in_use = in_use
        self.tower = TextTower(encoder)
        self.error: float | None = None
        self._compared_in: bool | None = None
        self._note_modules()
        self._deep: dict[int, tuple[DeepPrompt, ...]] = {}
        self._is_eot_checked = False
        self._sharing: dict[Hashable, Sharing] = {}
        self._equal: Remembered[int] = Remembered()
        self._still_equal = LateCheck(
            UserError(
                f"in the prompts that {type(encoder).__name__} gets, classes no longer share the "
                "tokens that they shared at the first step: use the encoder without the fast text "
                "branch"
            )
        )
        self._last = LastFeatures()

    @property
    def deep_prompts(self) -> tuple[DeepPrompt, ...]:
        """The host's deep prompts, once a call has shown them."""
        return max(self._deep.values(), key=len, default=())

    def __call__(self, *args: Any, **named: Any) -> Any:
        forward = type(self.encoder).forward
        call = inspect.signature(forward).bind(self.encoder, *args, **named)
        raw = call.args[1:]
        caches = not (call.kwargs or torch.is_grad_enabled()) and _is_readable(*raw)
        caches = caches and raw[0].dim() == 3
        if self.in_use and any(m._forward_hooks or m._forward_pre_hooks for m in self._inner):
            name = type(self.encoder).__name__
            self._give_up(f"the fast text branch passes over the forward hooks in {name}")
        if self.in_use and any(m._modules != parts for m, parts in self._parts):
            self.compare_again()  # an adapter may have been put around a part of a block
        is_compared = self.error is not None and self._compared_in == self.encoder.training
        if caches and self.in_use and is_compared:
            features = self._last.get(*self._inputs(*raw))
            if features is not None:
                return features
        given, have_layout = self.prompts.read(raw)
        if not have_layout:
            return self._own_forward(*given, **call.kwargs)
        if call.kwargs or not _is_readable(*given):
            return self._unread_forward(*given, **call.kwargs)
        self._find_deep_prompts(*given)
        if self.in_use and not is_compared:
            self._compare(*given)
        if self.in_use:
            features = self._fast(*given)
            if features is not None:
                if caches:
                    self._last.put(*self._inputs(*raw), features)
                return features
        return self.host_forward(*given)

    @torch.no_grad()
    def _find_deep_prompts(self, prompts: Tensor, tokens: Tensor, *deep: Sequence[Tensor]) -> None:
        """Watch a call with two classes to find where the host inserts deep prompts, if any."""
        given = deep[0] if deep else ()
        if len(given) in self._deep:
            return
        prompts = prompts.flatten(0, -4)[0] if prompts.dim() > 3 else prompts
        with (
            torch.autocast(prompts.device.type, enabled=False),
            DeepPromptFinder(self.encoder) as finder,
        ):
            call = prompts[:2], tokens[:2]
            try:
                self._own_forward(*call, *deep)
            except CALL_ERRORS:  # for example, the encoder has a parameter for each class
                call = prompts, tokens
                self._own_forward(*call, *deep)
        try:
            self._deep[len(given)] = found = self.prompts.deep_prompts(finder, given)
            with torch.autocast(prompts.device.type, enabled=False):
                self._check_eot(*call, *deep)
        except UserError as error:
            if self.prompts.have_layout:
                raise
            self._deep[len(given)] = ()
            self._give_up(str(error))
            return
        if len(given) and not found:  # the list holds something else, which the tower cannot read
            self._give_up(f"{type(self.encoder).__name__} overwrites no rows with the list it gets")

    def _give_up(self, reason: str) -> None:
        self.in_use = False
        log.warning("%s: its own forward stays", reason)

    def _check_eot(self, *given: Any) -> None:
        self.prompts.check_eot(type(self.encoder).__name__, self._own_forward, given)

    def _unread_forward(self, *args: Any, **named: Any) -> Any:
        """Call the host's own forward with arguments that the tower cannot read."""
        if not self.prompts.have_layout:
            return self._own_forward(*args, **named)
        if not self._is_eot_checked:
            self._is_eot_checked = True
            self._check_eot(*args)
        with DeepPromptFinder(self.encoder) as finder:
            features = self._own_forward(*args, **named)
        if finder.found(()):
            raise UserError(
                f"{type(self.encoder).__name__} overwrites the context with deep prompts and is "
                "not called with (prompts, tokens) or (prompts, tokens, list of deep prompts): "
                "the anchors would be lost there"
            )
        return features

    def _inputs(
        self, prompts: Tensor, tokens: Tensor, deep: Sequence[Tensor] = ()
    ) -> tuple[list[Tensor], Any]:
        """Everything that features without a graph depend on: an evaluation encodes them once."""
        matrix = self.prompts.matrix() if self._deep.get(len(deep)) else None
        layout = [] if matrix is None else [matrix]
        stop = max(eot_of(tokens)) + 1 + self.prompts.n_anchors
        state = (*state_of(self.encoder), torch.is_autocast_enabled(prompts.device.type))
        # By value: an average of weights may be put in their place through .data, unseen.
        trained = [parameter for parameter in self.encoder.parameters() if parameter.requires_grad]
        return [prompts[:, :stop], tokens, *deep, *layout, *trained], state

    def forget(self) -> None:
        """Drop the features of the last call."""
        self._last = LastFeatures()

    def compare_again(self) -> None:
        """Compare with the encoder's own forward at the next call, too: it may have changed."""
        self._compared_in = None

    def _note_modules(self) -> None:
        modules = list(self.encoder.modules())
        self._inner = modules[1:]
        self._parts = [(m, dict(m._modules)) for m in modules if m._modules]

    def _own_forward(self, *args: Any, **named: Any) -> Any:
        return type(self.encoder).forward(self.encoder, *args, **named)

    def host_forward(self, prompts: Tensor, tokens: Tensor, *deep: Any) -> Tensor:
        """Return the features of the encoder's own forward, deep prompts in their layout."""
        given = deep[0] if deep else ()
        prompted = self._deep.get(len(given))
        matrix = self.prompts.matrix() if prompted else None
        if not prompted or matrix is None:
            return self._own_forward(prompts, tokens, *deep)
        with overwriting(self.encoder, matrix, prompted, given, self.prompts.survivors):
            return self._own_forward(prompts, tokens, *map(none_of, deep))

    def _fast(self, prompts: Tensor, tokens: Tensor, given: Sequence[Tensor] = ()) -> Tensor | None:
        """Features of the packed tower; None if deep prompts meet contexts that differ."""
        eot = eot_of(tokens)
        sharing = self._shared(prompts, tokens, min(eot))
        prompted = {deep.block: deep for deep in self._deep[len(given)]}
        if not prompted:
            return self._encode(prompts, eot, sharing)
        found = {number: deep.read(self.encoder, given) for number, deep in prompted.items()}
        # Taken now: the backward pass computes chunks again, when another P may be in force.
        matrix = self.prompts.matrix()
        if matrix is None:
            start, stop = 0, max(deep.first + len(found[deep.block]) for deep in prompted.values())
        else:
            start, stop = FIRST, FIRST + len(matrix)
        if sharing.n_tokens < stop:
            return None
        survivors = self.prompts.survivors
        read = slice(start - survivors.early, stop - survivors.early)

        def rewrite(number: int, prefix: Tensor) -> Tensor:
            if number not in prompted:
                return prefix
            first = prompted[number].first - start
            context = arranged(matrix, found[number], prefix[:, read], first, survivors)
            return torch.cat([prefix[:, :start], context, prefix[:, stop:]], 1)

        return self._encode(prompts, eot, sharing, rewrite)

    def _encode(self, prompts: Tensor, eot: Sequence[int], *more: Any) -> Tensor:
        """Features of all classes; this process may encode only a part of them.

        Two cases are not split: prompts that depend on an image, which no other process has, and
        an evaluation, which encodes once and stores no activations.
        """
        n_classes = len(eot)
        splits = self.split and torch.is_grad_enabled() and prompts.dim() == 3
        if not splits or not 1 < distributed.world_size() <= n_classes:
            return self._encode_here(prompts, eot, *more)
        part = distributed.part_of(n_classes)
        return all_classes(self._encode_here(prompts[part], eot[part], *more), n_classes)

    def _encode_here(
        self, prompts: Tensor, eot: Sequence[int], sharing: Sharing, rewrite: Rewrite | None = None
    ) -> Tensor:
        """Encode all classes at once, or in chunks that the backward pass computes again."""
        if not self.chunk or len(eot) <= self.chunk:
            return self.tower.encode(prompts, eot, *sharing, rewrite)
        n_shared, rest_is_constant = sharing
        # So the gradient of the shared tokens has the size of all classes once, not in each chunk.
        shared = prompts[..., :1, :, :][..., :n_shared, :]
        rest = (prompts.detach() if rest_is_constant else prompts)[..., n_shared:, :]

        def encode(shared: Tensor, rest: Tensor, eot: Sequence[int]) -> Tensor:
            rest = rest[..., : max(eot) + 1 - n_shared, :]
            part = torch.cat([shared.expand(*rest.shape[:-2], -1, -1), rest], -2)
            return self.tower.encode(part, eot, *sharing, rewrite)

        parts = [
            # Without a graph, checkpoint only calls the function.
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

    def _compare(self, *given: Any) -> None:
        """Keep the fast branch only if the encoder's own forward gives the same features."""
        name, is_first = type(self.encoder).__name__, self.error is None
        branches = self.host_forward, self._fast
        few = CHECKED_CLASSES if is_first else CHECKED_AGAIN
        # The comparison has prompts of its own, all of them in each process.
        with mock.patch.multiple(self, _sharing={}, _equal=Remembered(), split=False):
            error, reason = compare(self.encoder, *branches, few, *given)
            if reason and not is_first:  # an encoder may have a parameter for each class
                error, reason = compare(self.encoder, *branches, CHECKED_CLASSES, *given)
        self.error = error
        self._compared_in = self.encoder.training
        self._note_modules()
        self.in_use = not reason
        if reason:
            log.warning("the fast text branch: %s; its own forward stays", reason)
        elif is_first:
            log.info("the fast text branch replaces %s (relative error %.0e)", name, self.error)

    def _shared(self, prompts: Tensor, tokens: Tensor, limit: int) -> Sharing:
        """How many leading tokens all classes share, in value and, where it flows, in gradient."""
        shared, is_old = self._equal.get(
            prompts, tokens, lambda: equal_tokens(prompts[..., :limit, :])
        )
        if is_old:
            self._still_equal.expect(are_equal(prompts.detach(), shared))
        if not (prompts.requires_grad and torch.is_grad_enabled()):
            return Sharing(shared, rest_is_constant=False)
        source = origin(prompts)
        if source not in self._sharing:
            if len(self._sharing) == REMEMBERED:  # some hosts make new leaves at every step
                self._sharing.clear()
            self._sharing[source] = sharing_in_gradient(prompts, shared)
        n_tokens, rest_is_constant = self._sharing[source]
        # If fewer tokens are equal now, the rest may carry a gradient.
        return Sharing(min(shared, n_tokens), rest_is_constant and shared >= n_tokens)


def _is_readable(*given: Any) -> bool:
    """Whether the arguments are prompts (…, C, L, d), tokens (C, L) and perhaps deep prompts."""
    if len(given) not in (2, 3) or not all(isinstance(x, Tensor) for x in given[:2]):
        return False
    return given[0].dim() > 2 and given[1].dim() == 2 and all(map(_is_deep, given[2:]))


def _is_deep(argument: Any) -> bool:
    """Whether an argument holds deep prompts: a list of (M, d), or one stacked tensor."""
    if isinstance(argument, Tensor):
        return argument.dim() == 3
    if not isinstance(argument, (list, tuple, nn.ParameterList)):
        return False
    return all(isinstance(prompt, Tensor) and prompt.dim() == 2 for prompt in argument)

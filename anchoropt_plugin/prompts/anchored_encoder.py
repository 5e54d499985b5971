"""A text encoder whose prompts carry anchors: what ``FastForward`` needs to know of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..encoders.deep_prompts import FIRST, OWN_SLOTS, DeepPrompt, DeepPromptFinder, Survivors
from ..encoders.host_prompts import HostPrompts
from ..encoders.shared_prefix import Remembered
from ..errors import UserError
from ..process.late_checks import LateCheck
from .attachment import Attachment
from .eot import check_features_depend_on_eot, end_at, tokens_as_prompts


class AnchoredEncoder(HostPrompts):
    """The prompts of a learner with anchors, as its host's text encoder gets them.

    Args:
        attachment: what ``attach`` put on the learner. A host may register its text encoder before
            its learner: until there is an attachment, prompts are as the host makes them.
        survivors: how deep layers read the tokens that no deep prompt replaces.

    Attributes:
        seen: whether prompts carried anchors, of all calls since somebody cleared it.
    """

    def __init__(
        self, attachment: Attachment | None = None, survivors: Survivors = OWN_SLOTS
    ) -> None:
        self.attachment = attachment
        self.survivors = survivors
        self.seen: set[bool] = set()
        self._read: Remembered[tuple[tuple[Tensor, ...], bool]] = Remembered()
        self._still_ends = LateCheck(
            UserError(
                "prompts no longer end where they ended at the first step, with the same tokens: "
                "pass tokens that have EOT where the prompts have it"
            )
        )

    @property
    def have_layout(self) -> bool:
        return self.attachment is not None

    @property
    def n_anchors(self) -> int:
        attachment = self.attachment
        return 0 if attachment is None or attachment.end is None else attachment.module.n_anchors

    def read(self, given: tuple[Any, ...]) -> tuple[tuple[Any, ...], bool]:
        if not self.n_anchors:
            return given, True
        assert self.attachment is not None
        end, n_anchors = self.attachment.end, self.n_anchors
        assert end is not None
        if len(given) < 2 or not _are_prompts_and_tokens(given[0], given[1], end):
            arguments, have_anchors = tokens_as_prompts(given, end, n_anchors)
            self.seen.add(have_anchors)
            return arguments, have_anchors
        prompts, tokens = given[:2]
        (moved, have_anchors), is_old = self._read.get(
            prompts, tokens, lambda: tokens_as_prompts((prompts, tokens), end, n_anchors)
        )
        if is_old:
            self._still_ends.expect(end_at(prompts, moved[1], end))
        self.seen.add(have_anchors)
        return (prompts, moved[1], *given[2:]), have_anchors

    def matrix(self) -> Tensor | None:
        return None if self.attachment is None else self.attachment.module.matrix()

    def deep_prompts(
        self, finder: DeepPromptFinder, given: Sequence[Tensor]
    ) -> tuple[DeepPrompt, ...]:
        """Ask the learner's hook, and check that deep prompts stay within the context.

        Raises:
            UserError: hidden states are overwritten in an unknown way, or outside the context.
        """
        if self.attachment is None:
            return finder.found(given)
        found = self.attachment.hook.deep_prompts(finder, given)
        n_ctx = self.attachment.module.n_ctx
        for deep in found:
            stop = deep.first + len(deep.read(finder.encoder, given))
            if deep.first < FIRST or stop > FIRST + n_ctx:
                raise UserError(
                    f"{type(finder.encoder).__name__} writes a deep prompt over rows {deep.first} "
                    f"to {stop - 1} before text block {deep.block}, but the context has {n_ctx} "
                    f"tokens from row {FIRST} on"
                )
        return found

    def check_eot(self, name: str, call: Callable[..., Any], given: tuple[Any, ...]) -> None:
        if self.n_anchors:
            assert self.attachment is not None and self.attachment.end is not None
            end = self.attachment.end
            check_features_depend_on_eot(name, call, given, end, self.n_anchors)


def _are_prompts_and_tokens(prompts: Any, tokens: Any, end: Tensor) -> bool:
    are_tensors = isinstance(prompts, Tensor) and isinstance(tokens, Tensor)
    if not are_tensors or tokens.is_floating_point():
        return False
    return prompts.shape[-1:] == end.shape and tokens.shape == prompts.shape[-3:-1]

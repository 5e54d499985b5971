"""A text encoder whose prompts carry anchors: what ``FastForward`` needs to know of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..encoders.deep_prompts import FIRST, DeepPrompt, DeepPromptFinder
from ..encoders.host_prompts import HostPrompts
from ..errors import UserError
from .eot import check_features_depend_on_eot, tokens_as_prompts
from .hooks import Attachment


class AnchoredEncoder(HostPrompts):
    """The prompts of a learner with anchors, as its host's text encoder gets them.

    Args:
        attachment: what ``attach`` put on the learner. A host may register its text encoder before
            its learner: until there is an attachment, prompts are as the host makes them.
    """

    def __init__(self, attachment: Attachment | None = None) -> None:
        self.attachment = attachment

    @property
    def have_layout(self) -> bool:
        return self.attachment is not None

    def read(self, given: tuple[Any, ...]) -> tuple[tuple[Any, ...], bool]:
        attachment = self.attachment
        if attachment is None or attachment.end is None or not attachment.module.n_anchors:
            return given, True
        return tokens_as_prompts(given, attachment.end, attachment.module.n_anchors)

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
        attachment = self.attachment
        if attachment is not None and attachment.end is not None and attachment.module.n_anchors:
            end, n_anchors = attachment.end, attachment.module.n_anchors
            check_features_depend_on_eot(name, call, given, end, n_anchors)

"""What ``FastForward`` asks about the prompts that a host calls its text encoder with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from .deep_prompts import OWN_SLOTS, DeepPrompt, DeepPromptFinder


class HostPrompts:
    """Prompts as the host makes them. A subclass describes prompts that carry anchors.

    Attributes:
        survivors: how deep layers read the tokens that no deep prompt replaces.
    """

    survivors = OWN_SLOTS

    @property
    def have_layout(self) -> bool:
        """Whether a position matrix arranges the context, also at deep prompts."""
        return False

    @property
    def n_anchors(self) -> int:
        """Number K of tokens by which EOT may move."""
        return 0

    def read(self, given: tuple[Any, ...]) -> tuple[tuple[Any, ...], bool]:
        """Return the arguments, EOT in the tokens where the prompts have it.

        Args:
            given: prompts (…, C, L, d), tokens (C, L), and further arguments of the host.

        Returns:
            The arguments, and whether the prompts fit ``matrix``; those that do not are left to the
            host's own forward.
        """
        return given, True

    def matrix(self) -> Tensor | None:
        """Return the position matrix in force, (M + K, M + K), or None without a layout."""
        return None

    def deep_prompts(
        self, finder: DeepPromptFinder, given: Sequence[Tensor]
    ) -> tuple[DeepPrompt, ...]:
        """Return the deep prompts of the call that ``finder`` watched.

        Args:
            finder: watched a call of the host's text encoder.
            given: the list of deep prompts in that call, if any.

        Raises:
            UserError: hidden states are overwritten in an unknown way.
        """
        return finder.found(given)

    def check_eot(self, name: str, call: Callable[..., Any], given: tuple[Any, ...]) -> None:
        """Raise ``UserError`` if the encoder does not read features at EOT.

        Args:
            name: of the text encoder, for the message.
            call: the encoder's own forward.
            given: its arguments.
        """

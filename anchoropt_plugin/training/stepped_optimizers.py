"""The optimisers that a host steps: what trains the soft tokens must train the position logits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from ..errors import UserError


class SteppedOptimizers:
    """The optimisers that were stepped since the last check: also those that a host makes itself.

    Args:
        learner: the host's prompt learner.
        position: the position matrix on it.
    """

    def __init__(self, learner: nn.Module, position: nn.Module) -> None:
        self._learner, self._position = learner, position
        self._stepped: dict[int, Any] = {}

    @contextmanager
    def noted(self) -> Iterator[None]:
        """In this context, note each optimiser that is stepped."""
        handle = register_optimizer_step_post_hook(self._note)
        try:
            yield
        finally:
            handle.remove()

    def _note(self, optimizer: Any, *_: Any) -> None:
        self._stepped[id(optimizer)] = optimizer

    def check(self, host: str) -> None:
        """Check the steps of an epoch.

        Raises:
            UserError: the soft tokens were trained, and position logits that are to be were not.
        """
        groups = [group for one in self._stepped.values() for group in one.param_groups]
        self._stepped.clear()
        held = {id(parameter) for group in groups for parameter in group["params"]}
        own = {id(p) for p in self._position.parameters() if p.requires_grad}
        others = {id(p) for p in self._learner.parameters()} - own
        if own and held & others and not held & own:
            raise UserError(
                f"the optimiser that {host} steps holds the soft tokens of its prompt learner, but "
                "not the position logits: give each optimiser of the soft tokens all parameters of "
                "the learner"
            )

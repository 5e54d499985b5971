"""``LoadedNames``: a loaded state must not put other class names behind the context of a prompt.

Most learners hold the embeddings of their prompts in buffers, but not their tokens: a state brings
the names of its own classes, and no shape tells, if both have the same number of classes. The
encoder then reads features where EOT of the other names was.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import UserError


class LoadedNames:
    """Refuses a state with embedded names of other classes, unless it brings their tokens, too.

    A tensor (C, n, d) with the embedding of EOT for each class holds class names. So a state of
    another CLIP, contexts of classes and averages are none of this.

    Args:
        end: embedding (d,) of EOT.
    """

    def __init__(self, end: Tensor) -> None:
        self.end = end
        self._of_tokens: list[str] = []
        self._handle: RemovableHandle | None = None

    def put_on(self, learner: nn.Module, tokens: Tensor) -> None:
        """Look at each state that is loaded into ``learner``, alone or with its model."""
        self._of_tokens = [name for name, x in _held(learner) if x.data_ptr() == tokens.data_ptr()]
        # torch's public name for it came with 2.5.
        self._handle = learner._register_load_state_dict_pre_hook(self.check, with_module=True)

    def take_off(self) -> None:
        """Undo ``put_on``."""
        if self._handle is not None:
            self._handle.remove()

    @torch.no_grad()
    def check(self, learner: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        """Raise ``UserError`` if ``state`` has class names that are not those of ``learner``."""
        if any(f"{prefix}{name}" in state for name in self._of_tokens):
            return
        pairs = [(f"{prefix}{name}", tensor) for name, tensor in _held(learner)]
        names = [name for name, tensor in pairs if self._differ(tensor, state.get(name))]
        if names:
            listed = ", ".join(names)
            raise UserError(
                f"the state to load has {listed} of other class names than those of this "
                f"{type(learner).__name__}, and not their tokens: leave {listed} out of the state "
                "and load it with strict=False"
            )

    def _differ(self, held: Tensor, loaded: Any) -> bool:
        """Whether both tensors hold class names, embedded by the same CLIP, but others."""
        if not isinstance(loaded, Tensor) or held.shape != loaded.shape:
            return False
        if held.dim() != 3 or held.shape[2:] != self.end.shape:
            return False
        both = torch.stack([held, loaded.to(held)])
        have_end = is_close(both, self.end.to(held)).all(-1).any(-1).all()
        return bool(have_end) and not bool(is_close(*both).all())


def _held(learner: nn.Module) -> list[tuple[str, Tensor]]:
    """Return the tensors of a learner that a state may change, by name."""
    # Not the learner's own state_dict, which may have other arguments.
    state = nn.Module.state_dict(learner)
    return [(name, value) for name, value in state.items() if isinstance(value, Tensor)]


def is_close(now: Tensor, was: Tensor) -> Tensor:
    """Return where two tensors are the same but for the rounding of other precisions."""
    return torch.isclose(now, was, rtol=1e-2, atol=1e-3)

"""The tensors of a prompt learner that describe its classes: a checkpoint must not bring others.

A host's ``load_model`` leaves out the embeddings of the class names, which belong to the classes of
the training. If it does not, the prompts of a test have the names of other classes, and no shape
tells: both may have the same number of classes. The names of these tensors are the host's own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..files.checkpoint_folder import is_of_anchoropt
from .hooks import hook_for
from .loaded_names import is_close


@contextlib.contextmanager
def changed_class_tensors(learner: nn.Module) -> Iterator[list[str]]:
    """Yield a list that has, after the block, the names of the class tensors that it changed.

    A class tensor is not trained, and has a dimension of as many entries as there are classes: a
    buffer, a frozen parameter or a plain attribute. So running statistics of normalisation layers
    and averages of soft tokens are none.

    >>> class Learner(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.ctx = nn.Parameter(torch.zeros(2, 4))
    ...         self.register_buffer("names", torch.zeros(3, 5, 4))
    ...         self.tokenized_prompts = torch.zeros(3, 8, dtype=torch.long)
    >>> learner = Learner()
    >>> with changed_class_tensors(learner) as names:
    ...     _ = learner.load_state_dict({"ctx": torch.ones(2, 4), "names": torch.ones(3, 5, 4)})
    >>> names
    ['names']
    """
    n_classes = len(hook_for(learner).tokens(learner))
    before = {
        name: value.clone() for name, value in _tensors(learner).items() if n_classes in value.shape
    }
    names: list[str] = []
    yield names
    now = _tensors(learner)
    names += [
        name
        for name, was in before.items()
        if not (name in now and (now[name].requires_grad or _is_same(now[name], was)))
    ]


def of_other_classes(loader: str, names: Sequence[str]) -> UserError:
    """Return the error that ``loader`` changes the class tensors ``names`` to those of others."""
    listed = ", ".join(names)
    return UserError(
        f"{loader} puts {listed} of the checkpoint, which belong to the classes of its training, "
        f"into the prompt learner, which is for others: skip {listed}"
    )


def _tensors(learner: nn.Module) -> dict[str, Tensor]:
    """Return all tensors of a learner but AnchorOPT's, by dotted name."""
    return {
        dotted: value
        for path, module in learner.named_modules()
        for name, value in {**vars(module), **module._parameters, **module._buffers}.items()
        if isinstance(value, Tensor) and not is_of_anchoropt(dotted := f"{path}.{name}".lstrip("."))
    }


def _is_same(now: Tensor, was: Tensor) -> bool:
    if now.shape != was.shape:
        return False
    if not was.is_floating_point():
        return torch.equal(now.to(was), was)
    return bool(is_close(now.to(was), was).all())

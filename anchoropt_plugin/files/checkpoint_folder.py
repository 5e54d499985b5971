"""A model's checkpoint folder: its last checkpoint, and the tensors that depend on the classes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError

BEST_MODEL = "model-best.pth.tar"

CHILD = "anchoropt"
"""Name of the position module in a prompt learner."""
POSITION_LOGITS = "ctx_pos_params"
"""Name of the position logits in a prompt learner of the released code."""

CLASS_BUFFERS = (
    *("token_prefix", "token_suffix"),
    *("token_middle1", "token_middle2", "token_middle3"),  # ATPrompt's attributes
)
"""Buffers of a prompt learner that depend on its classes."""


def last_checkpoint_name(folder: str | Path) -> str:
    """Return the file name in the text file ``checkpoint`` of ``folder``.

    Raises:
        UserError: a text file that holds no file name.
        OSError: a text file that cannot be read.
    """
    noted = Path(folder, "checkpoint")
    name = noted.read_text(encoding="utf-8", errors="replace").strip()
    if not name or Path(name).name != name or not name.isprintable():
        raise UserError(
            f"{noted} holds {name[:100]!r}, not the name of a file in its folder; write the name "
            f"of the last checkpoint into {noted.name}, or remove it"
        )
    return name


def epoch_in_name(path: str | Path) -> int | None:
    """Return the epoch in a checkpoint's file name, None if it has none.

    >>> epoch_in_name("run/prompt_learner/model.pth.tar-50"), epoch_in_name(BEST_MODEL)
    (50, None)
    """
    number = re.fullmatch(r"model\.pth\.tar-(\d{1,9})", Path(path).name, re.ASCII)
    return int(number[1]) if number else None


def newest_common_checkpoint(folders: Iterable[Path]) -> str:
    """Return the last checkpoint that all models have, given each model's folder.

    The names in the text files ``checkpoint`` differ if a run was killed while it saved. The
    result is then the name that exists in all folders. The best model, which later epochs
    overwrite, comes last.
    """
    folders = list(folders)
    names = sorted(dict.fromkeys(map(last_checkpoint_name, folders)), key=BEST_MODEL.__eq__)
    whole = [name for name in names if all((folder / name).is_file() for folder in folders)]
    return next(iter([*whole, *names]))


def is_of_classes(name: str) -> bool:
    """Return whether ``name`` in a state dict belongs to one of ``CLASS_BUFFERS``."""
    return name.rpartition(".")[2] in CLASS_BUFFERS


def is_of_anchoropt(name: str) -> bool:
    """Return whether ``name`` in a state dict belongs to AnchorOPT, ours or the released code's.

    >>> is_of_anchoropt("prompt_learner.anchoropt.logits"), is_of_anchoropt("prompt_learner.ctx")
    (True, False)
    """
    return bool({CHILD, POSITION_LOGITS} & set(name.split(".")))


def without_module(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state dict without the prefix that DataParallel puts before names.

    >>> without_module({"module.ctx": 1})
    {'ctx': 1}
    """
    return {str(name).removeprefix("module."): value for name, value in state.items()}


def tensor_of_other_classes(there: Mapping[str, Tensor], here: Mapping[str, Tensor]) -> str:
    """Return the name of a class buffer that differs in two state dicts; "" if all are equal."""
    for name in sorted(filter(is_of_classes, there.keys() & here.keys())):
        one, other = there[name].float().cpu(), here[name].float().cpu()
        # Equal up to the rounding of half precision.
        if one.shape != other.shape or not torch.allclose(one, other, rtol=1e-2, atol=1e-4):
            return name
    return ""

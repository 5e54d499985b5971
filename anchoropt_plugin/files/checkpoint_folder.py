"""A model's folder of checkpoints: which is the last one, and which tensors belong to classes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..errors import UserError

BEST_MODEL = "model-best.pth.tar"

CLASS_BUFFERS = (
    *("token_prefix", "token_suffix"),
    *("token_middle1", "token_middle2", "token_middle3"),  # ATPrompt's attributes
)
"""Buffers of a prompt learner that hold its classes: another set of classes has other ones."""


def last_checkpoint_name(folder: str | Path) -> str:
    """Return the file name that the text file ``checkpoint`` in ``folder`` holds.

    Raises:
        UserError: It holds something else.
        OSError: It cannot be read.
    """
    noted = Path(folder, "checkpoint")
    name = noted.read_text(encoding="utf-8", errors="replace").strip()
    if not name or Path(name).name != name or not name.isprintable():
        raise UserError(
            f"{noted} holds {name[:100]!r}, not the name of a file beside it; write that of the "
            "last checkpoint into it, or remove it"
        )
    return name


def newest_common_checkpoint(folders: Iterable[Path]) -> str:
    """Return the file name in the text files ``checkpoint`` of several models.

    A run that was killed while it saved has named a newer one for some of them: then it is the
    one that all have; the best one, which is written over, where they have no other.
    """
    folders = list(folders)
    names = sorted(dict.fromkeys(map(last_checkpoint_name, folders)), key=BEST_MODEL.__eq__)
    whole = [name for name in names if all((folder / name).is_file() for folder in folders)]
    return next(iter([*whole, *names]))


def is_of_classes(name: str) -> bool:
    """Whether a name in a state dict is that of one of ``CLASS_BUFFERS``."""
    return name.rpartition(".")[2] in CLASS_BUFFERS

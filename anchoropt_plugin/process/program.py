"""How the package's commands were started: ``anchoropt``, or ``python -m anchoropt_plugin``."""

from __future__ import annotations

import sys
from pathlib import Path

SCRIPT = "anchoropt"
MODULE = "python -m anchoropt_plugin"


def program() -> str:
    """Return what the user typed, for messages that name a command."""
    return SCRIPT if Path(*sys.argv[:1]).stem == SCRIPT else MODULE


def import_from_here() -> None:
    """Let ``anchoropt`` import modules of the working directory first, as ``python -m`` does.

    A repository there may have a clip, a Dassl and trainers of its own.
    """
    if program() == SCRIPT and not getattr(sys.flags, "safe_path", False):
        sys.path.insert(0, str(Path.cwd()))

"""Try a trainer with AnchorOPT on a small random CLIP: the command ``check``."""

from __future__ import annotations

from .command import HELP, add_arguments, run

__all__ = ["HELP", "add_arguments", "run"]

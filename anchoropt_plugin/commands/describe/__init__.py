"""Ask a language model for class descriptions: the command ``describe``."""

from __future__ import annotations

from .command import HELP, add_arguments, run

__all__ = ["HELP", "add_arguments", "run"]

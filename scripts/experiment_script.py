"""What the scripts of experiments share."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def run(name: str, description: str | None) -> int:
    """Run the command line of ``experiments.<name>``, and return its exit status."""
    from anchoropt_plugin.process.command_line import status_of

    return status_of(  # imports the package itself: a missing dependency is one line then
        lambda: import_module(f"experiments.{name}").main(description),
        interrupted="interrupted; to resume, run the same command again",
    )

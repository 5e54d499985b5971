"""What the scripts of experiments share."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def run(name: str, description: str | None) -> int:
    """Run the command line of an experiment, and return its exit status."""
    from anchoropt_plugin.experiments import check_packages
    from anchoropt_plugin.experiments.flags import INTERRUPTED
    from anchoropt_plugin.process.command_line import status_of

    def command() -> int:
        check_packages()
        return import_module(f"anchoropt_plugin.experiments.{name}").main(description)

    return status_of(command, interrupted=INTERRUPTED)

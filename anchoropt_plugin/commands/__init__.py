"""The commands of ``python -m anchoropt_plugin``: one module for each command.

The module of a command has ``HELP``, one line for the list of commands; ``add_arguments(parser)``;
and ``run(args)``, which returns the exit status and raises ``UserError``.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


def all_commands() -> dict[str, ModuleType]:
    """Return the modules of all commands by name.

    >>> "run" in all_commands()
    True
    """
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return {name: importlib.import_module(f"{__name__}.{name}") for name in names}

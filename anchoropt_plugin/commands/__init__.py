"""The commands of ``python -m anchoropt_plugin``: every module here is one.

A command's module has ``HELP``, a line for the list of commands; ``add_arguments(parser)``; and
``run(args)``, which returns the exit status and raises ``UserError`` for what the user can mend.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


def all_commands() -> dict[str, ModuleType]:
    """The modules of all commands, by name.

    >>> "run" in all_commands()
    True
    """
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return {name: importlib.import_module(f"{__name__}.{name}") for name in names}

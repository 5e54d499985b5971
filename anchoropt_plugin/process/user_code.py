"""Import the user's modules, and report their errors in one line."""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path
from types import ModuleType

from ..errors import UserError


def import_user_module(name: str) -> ModuleType:
    """Import a module from the working directory or the Python path.

    Raises:
        UserError: an unknown module, or a module whose import fails.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except UserError:
        raise
    except Exception as error:  # the user's module may raise anything
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            raise UserError(f"there is no module {name!r} in {here}") from error
        raise UserError(f"importing {name} fails: {error_in_one_line(error)}") from error


def error_in_one_line(error: BaseException) -> str:
    """Return an exception's type and message with its place in the working directory's files.

    >>> try:
    ...     {}["N_CTX"]
    ... except KeyError as error:
    ...     error_in_one_line(error).partition(":")[2]
    "2: KeyError: 'N_CTX'"
    """
    places = traceback.extract_tb(error.__traceback__)
    own = [place for place in places if Path(place.filename).is_relative_to(Path.cwd())]
    place = (own or places)[-1]
    message = " ".join(str(error).split()) or "no message"
    return f"{place.filename}:{place.lineno}: {type(error).__name__}: {message}"

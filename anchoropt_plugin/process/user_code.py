"""Import a user's own modules, and tell their errors in one line."""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path
from types import ModuleType

from ..errors import UserError


def import_user_module(name: str) -> ModuleType:
    """Import a module of the working directory, or any other.

    Raises:
        UserError: there is none of that name, or importing it fails.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except UserError:
        raise
    except Exception as error:  # whatever a module of somebody else's raises
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            raise UserError(f"there is no module {name!r} in {here}") from error
        raise UserError(f"importing {name} fails: {error_in_one_line(error)}") from error


def error_in_one_line(error: BaseException) -> str:
    """What an exception in somebody else's code says, and where in the working directory's files.

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

"""Only one command at a time writes into an output folder: a second one is refused.

The kernel holds the lock, on a file ``.lock`` in the folder, and frees the lock when its process
ends, even by a kill. A ``.lock`` file left by a killed run blocks nobody.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ..errors import UserError
from .distributed import is_main

try:
    import fcntl
except ImportError:  # Windows has no fcntl: folders are not locked there
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger("anchoropt_plugin")

LOCK = ".lock"
_TAKEN = (errno.EACCES, errno.EAGAIN)
_FORBIDDEN = (errno.EACCES, errno.EROFS)
_SHOWN_AT_MOST = 200


@dataclass
class _Held:
    """A lock of this process, and the number of open blocks that use it."""

    file: IO[bytes]
    blocks: int = 0


_held: dict[Path, _Held] = {}
if fcntl is not None:
    os.register_at_fork(after_in_child=_held.clear)  # a child does not inherit the locks


@contextlib.contextmanager
def locked_folder(folder: str | Path) -> Iterator[None]:
    """Lock a folder while the block runs; create the folder if it is missing.

    Blocks of one process may be nested. In a run of several processes only the main one, which
    writes the files, takes the lock.

    Args:
        folder: the folder to lock.

    Raises:
        UserError: a folder that another process has locked; the message names the process.
        OSError: a folder that cannot be written to.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with locked_folder(folder):
    ...         during = os.listdir(folder)
    ...     during, os.listdir(folder)
    (['.lock'], [])
    """
    if not is_main() or fcntl is None:
        yield
        return
    folder = Path(folder).resolve()
    if folder not in _held:
        _held[folder] = _Held(_locked(folder))
    held = _held[folder]
    held.blocks += 1
    try:
        yield
    finally:
        held.blocks -= 1
        if not held.blocks and _held.get(folder) is held:  # otherwise this process is a fork
            del _held[folder]
            with contextlib.suppress(OSError):
                # Removed before the unlock: a process that opened the file earlier then locks a
                # file without a name, and _is_at notices.
                (folder / LOCK).unlink()
            held.file.close()


def _locked(folder: Path) -> IO[bytes]:
    """Lock the folder's lock file, write this process's name into it and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    while True:
        try:
            file = path.open("ab+", buffering=0)
        except OSError as error:
            if error.errno in _FORBIDDEN:
                error.filename = str(folder)  # the name that the user knows
            raise
        try:
            _lock(file, path)
            if _is_at(file, path):
                with contextlib.suppress(OSError):  # a full disk: the run's next write reports it
                    file.truncate(0)
                    file.write(f"process {os.getpid()} on {platform.node()}".encode())
                return file
        except BaseException:
            file.close()
            raise
        file.close()  # the previous holder removed the file in the meantime: try again


def _lock(file: IO[bytes], path: Path) -> None:
    try:
        # Not flock: a run's worker processes inherit an flock and may outlive the run by seconds.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _TAKEN:
            log.warning("cannot lock %s (%s): let only one run write there", path, error)
            return
        file.seek(0)
        content = file.read(_SHOWN_AT_MOST).decode(errors="replace")
        holder = "".join(filter(str.isprintable, content)) or "another process"
        raise UserError(
            f"{path.parent} is in use by {holder}: wait until that process ends, or give another "
            "output folder"
        ) from error


def _is_at(file: IO[bytes], path: Path) -> bool:
    """Return whether the open ``file`` is still the one at ``path``."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False

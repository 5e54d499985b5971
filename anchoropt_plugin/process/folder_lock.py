"""One command at a time writes into an output folder: a second one is refused.

The lock is the kernel's, on a file ``.lock`` in the folder. It ends with the process that holds it,
however that came about, so what a killed run has left of it stops nobody.
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
except ImportError:  # not on Windows, where nothing is locked
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger("anchoropt_plugin")

LOCK = ".lock"
_TAKEN = (errno.EACCES, errno.EAGAIN)
_SHOWN = 200


@dataclass
class _Held:
    """A lock of this process, and how many blocks rely on it."""

    file: IO[bytes]
    blocks: int = 0


_held: dict[Path, _Held] = {}
if fcntl is not None:
    os.register_at_fork(after_in_child=_held.clear)  # its parent's are not its own


@contextlib.contextmanager
def locked_folder(folder: str | Path) -> Iterator[None]:
    """While the block runs, no other process gets into such a block with the same folder.

    The folder is made where it is missing. Blocks of one process may be in each other. Of several
    processes of a run the main one holds the lock, as it is the one that writes.

    Raises:
        UserError: another process is in such a block; it is named, and nothing is changed.
        OSError: the folder cannot be written to.

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
        if not held.blocks and _held.get(folder) is held:  # else this is a fork
            del _held[folder]
            with contextlib.suppress(OSError):
                # While it is locked: who opened it before sees that it is gone.
                (folder / LOCK).unlink()
            held.file.close()


def _locked(folder: Path) -> IO[bytes]:
    """The lock's file, locked for this process, which is named in it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    while True:
        file = path.open("ab+", buffering=0)
        try:
            _lock(file, path)
            if _is(file, path):
                with contextlib.suppress(OSError):  # of a full disk: what is written next tells it
                    file.truncate(0)
                    file.write(f"process {os.getpid()} on {platform.node()}".encode())
                return file
        except BaseException:
            file.close()
            raise
        file.close()  # who held it has removed it meanwhile


def _lock(file: IO[bytes], path: Path) -> None:
    try:
        # Not flock: worker processes of a run, which may outlive it by seconds, share that.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _TAKEN:
            log.warning("%s cannot be locked (%s): see that one run writes there", path, error)
            return
        file.seek(0)
        said = file.read(_SHOWN).decode(errors="replace")
        holder = "".join(filter(str.isprintable, said)) or "another process"
        raise UserError(
            f"{path.parent} is in use by {holder}: wait until that is done, or give another "
            "--output-dir"
        ) from error


def _is(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False

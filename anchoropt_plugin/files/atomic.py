"""Write files whole or not at all."""

from __future__ import annotations

import contextlib
import io
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from ..process.distributed import is_main


@contextmanager
def atomic_write(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a file for writing; the file gets its name only if the block ends without an error.

    The content is on the disk before the file gets its name, and the name is on the disk when the
    block has ended. Unfinished copies of the same file, left by killed processes, are removed.
    Only the main process writes; the other processes of a run write into memory.

    Args:
        path: the file to write; an existing file is replaced.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_write(f"{folder}/note.txt") as file:
    ...         _ = file.write(b"done")
    ...     os.listdir(folder)
    ['note.txt']
    """
    if not is_main():
        yield io.BytesIO()
        return
    path = Path(path)
    _remove_unfinished(path)
    unfinished = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.part")
    try:
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename == str(unfinished):
            error.filename = str(path)  # the name that the caller knows
        unfinished.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` in UTF-8, whole or not at all: see :func:`atomic_write`."""
    with atomic_write(path) as file:
        file.write(text.encode())


def _remove_unfinished(path: Path) -> None:
    """Remove unfinished copies of ``path`` whose processes, on this machine, have ended."""
    start = f".{path.name}.{platform.node()}."
    with contextlib.suppress(OSError):  # a missing folder: opening the file reports it
        for other in path.parent.iterdir():
            number = other.name.removeprefix(start).removesuffix(".part")
            is_one = other.name == f"{start}{number}.part" and number.isdecimal()
            if is_one and not _is_alive(int(number)):
                other.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    if os.name != "posix":  # on Windows os.kill would end the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's process
        pass
    return True


def _sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk, if the system can."""
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)

"""Write a file whole or not at all."""

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
    """Open a file for writing that takes its name only when the block ends without an error.

    Its content is on the disk before that, and its name is when this returns. What a process that
    was killed has left of the same file is removed.
    Of several processes the main one writes; in the others what is written is dropped.

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
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` in UTF-8, whole or not at all."""
    with atomic_write(path) as file:
        file.write(text.encode())


def _remove_unfinished(path: Path) -> None:
    """Remove what processes of this machine that are no more have left of ``path``."""
    start = f".{path.name}.{platform.node()}."
    with contextlib.suppress(OSError):  # no such folder: opening the file will say so
        for other in path.parent.iterdir():
            number = other.name.removeprefix(start).removesuffix(".part")
            is_one = other.name == f"{start}{number}.part" and number.isdecimal()
            if is_one and not _lives(int(number)):
                other.unlink(missing_ok=True)


def _lives(pid: int) -> bool:
    if os.name != "posix":  # there os.kill ends it
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # somebody else's
        pass
    return True


def _sync_folder(folder: Path) -> None:
    """Have the names in a folder written to the disk, where the system can."""
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)

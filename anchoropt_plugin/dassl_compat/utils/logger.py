"""Copy everything printed on stdout to ``log.txt``."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from ...errors import UserError
from ...process.distributed import is_main
from ...process.folder_lock import LOCK, locked_folder


class Logger:
    """A replacement for ``sys.stdout`` that also writes to a file, and locks the file's folder.

    Args:
        fpath: the file. A missing folder is created; the folder is locked until the file closes.

    Raises:
        UserError: a folder that another process has locked; nothing is written.
    """

    def __init__(self, fpath: str | Path) -> None:
        # Never a Logger inside a Logger: a second run in one process writes to its own file only.
        self.console: TextIO = getattr(sys.stdout, "console", sys.stdout)
        if isinstance(self.console, io.TextIOWrapper):
            # Class names may be in any script; a terminal's encoding may lack the letters.
            self.console.reconfigure(errors="backslashreplace")
        self.path = Path(fpath)
        self.size_before = self.path.stat().st_size if self.path.exists() else 0
        lock = contextlib.ExitStack()
        lock.enter_context(locked_folder(self.path.parent))
        self._unlock = weakref.finalize(self, lock.close)  # runs when Python ends, at the latest
        # Line buffered, so that a killed run's log is complete up to its last line.
        self.file = self.path.open("a", encoding="utf-8", errors="backslashreplace", buffering=1)

    def write(self, text: str) -> int:
        """Write ``text`` to the console and to the file."""
        self.file.write(text)
        return self.console.write(text)

    def flush(self) -> None:
        """Flush the console and the file."""
        self.file.flush()
        self.console.flush()

    def close(self) -> None:
        """Close the file and unlock its folder; leave the console open."""
        try:
            self.file.close()
        finally:
            self._unlock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.console, name)


def setup_logger(output: str | None = None) -> None:
    """Copy everything printed from now on to a log file, and lock the file's folder.

    In a run of several processes only the main one has a log; the others print nothing.

    Args:
        output: a .txt or .log file, or a folder for ``log.txt``; None does nothing. An existing
            log goes on: Dassl begins another file, which CoOp's log parser does not read.

    Raises:
        UserError: a folder that another process has locked; nothing is written.
    """
    if output is None:
        return
    if is_main():
        path = Path(output)
        if path.suffix not in (".txt", ".log"):
            path = path / "log.txt"
        sys.stdout = Logger(path)
    else:
        warnings.simplefilter("ignore")
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
    log_to_stdout()


def withdraw_log() -> None:
    """Undo ``setup_logger``: the log is as before, and a new folder is gone.

    For errors found before the run starts: the line on stderr is enough.
    """
    logger = sys.stdout
    if isinstance(logger, Logger):
        sys.stdout = logger.console
        logger.close()
        if logger.size_before:
            os.truncate(logger.path, logger.size_before)
            return
        logger.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty
            logger.path.parent.rmdir()


@contextlib.contextmanager
def lone_log_withdrawn() -> Iterator[None]:
    """Undo ``setup_logger`` if the block ends with a ``UserError`` and wrote only its log."""
    try:
        yield
    except UserError:
        logger = sys.stdout
        if isinstance(logger, Logger):
            here = {path.name for path in logger.path.parent.iterdir()}
            if here <= {logger.path.name, LOCK}:
                withdraw_log()
        raise


class _PrintHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        # print() looks sys.stdout up at each call, so a Logger set up later gets the message.
        print(self.format(record))


def log_to_stdout() -> None:
    """Print the messages of the ``anchoropt_plugin`` logger, so that ``log.txt`` has them too."""
    logger = logging.getLogger("anchoropt_plugin")
    if not any(isinstance(handler, _PrintHandler) for handler in logger.handlers):
        logger.addHandler(_PrintHandler())
        logger.setLevel(logging.INFO)

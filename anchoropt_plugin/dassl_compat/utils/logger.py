"""Keeping what is printed: everything on stdout goes to ``log.txt`` too."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import time
import warnings
import weakref
from pathlib import Path
from typing import Any, TextIO

from ...process.distributed import is_main
from ...process.folder_lock import locked_folder


class Logger:
    """A stand-in for ``sys.stdout`` that also writes to a file, in a folder that is no one else's.

    Args:
        fpath: The file; its folder is made where it is missing, and locked until this is closed.

    Raises:
        UserError: Another process has the folder; nothing is written.
    """

    def __init__(self, fpath: str | Path) -> None:
        # Not a Logger in a Logger: a second run in one process has its own file.
        self.console: TextIO = getattr(sys.stdout, "console", sys.stdout)
        if isinstance(self.console, io.TextIOWrapper):
            # Class names are in any script, terminals are not.
            self.console.reconfigure(errors="backslashreplace")
        self.path = Path(fpath)
        lock = contextlib.ExitStack()
        lock.enter_context(locked_folder(self.path.parent))
        self._unlock = weakref.finalize(self, lock.close)  # at the latest when Python ends
        # By lines, so that the log of a run that is killed is there up to its last line.
        self.file = self.path.open("a", encoding="utf-8", errors="backslashreplace", buffering=1)

    def write(self, text: str) -> int:
        """Write ``text`` to the console and to the file."""
        self.file.write(text)
        return self.console.write(text)

    def flush(self) -> None:
        """Flush both."""
        self.file.flush()
        self.console.flush()

    def close(self) -> None:
        """Close the file and unlock its folder; the console stays open."""
        try:
            self.file.close()
        finally:
            self._unlock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.console, name)


def setup_logger(output: str | None = None) -> None:
    """Copy what is printed from now on to ``output`` (a .txt or .log file), or its ``log.txt``.

    A log that is there already is kept: the new one gets the time in its name. ``None`` does
    nothing. Of several processes the main one has a log, and the others print nothing.

    Raises:
        UserError: A run of another process has its log in that folder; nothing is written.
    """
    if output is None:
        return
    if is_main():
        path = Path(output)
        if path.suffix not in (".txt", ".log"):
            path = path / "log.txt"
        if path.exists():
            path = path.with_name(path.name + time.strftime("-%Y-%m-%d-%H-%M-%S"))
        sys.stdout = Logger(path)
    else:
        warnings.simplefilter("ignore")
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
    log_to_stdout()


def withdraw_log() -> None:
    """Take back what ``setup_logger`` has begun, and the folder that it made if nothing is in it.

    For faults that are found before anything is done: the line on stderr says it all.
    """
    logger = sys.stdout
    if isinstance(logger, Logger):
        sys.stdout = logger.console
        logger.close()
        logger.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty
            logger.path.parent.rmdir()


class _PrintHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        # print() looks sys.stdout up now, so a Logger set up after this handler sees it.
        print(self.format(record))


def log_to_stdout() -> None:
    """Print the messages of the ``anchoropt_plugin`` logger, and so log them to ``log.txt``."""
    logger = logging.getLogger("anchoropt_plugin")
    if not any(isinstance(handler, _PrintHandler) for handler in logger.handlers):
        logger.addHandler(_PrintHandler())
        logger.setLevel(logging.INFO)

"""What all command lines share: the parser, and one line and an exit status for each error."""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, NoReturn

from ..errors import UserError, nearest
from .distributed import is_main, rank, world_size
from .open_files import TOO_MANY, is_too_many

_IS_FULL = (errno.ENOSPC, errno.EDQUOT)

KEY = re.compile(r"[A-Z0-9_]+(\.[A-Z0-9_]+)+")
"""The form of a config key."""


class Parser(argparse.ArgumentParser):
    """An argument parser that raises ``UserError`` for a wrong command line.

    A leading ``~`` of a value is the home folder: no shell replaces it in ``--flag=~/folder``, nor
    in a command that runs without a shell.

    Attributes:
        takes_pairs: whether KEY VALUE pairs may follow all flags. They are the arguments' ``opts``,
            and the whole command line is ``command_line``.
    """

    takes_pairs = False

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        words = [_at_home(word) for word in (sys.argv[1:] if args is None else args)]
        at = len(words)
        if self.takes_pairs:  # a flag with several values would take the pairs too
            at = next((at for at, word in enumerate(words) if KEY.fullmatch(word)), at)
        parsed, unknown = super().parse_known_args(words[:at], namespace)
        if unknown:
            hint = nearest(unknown[0].partition("=")[0], self._option_string_actions)
            pairs = "; settings are KEY VALUE pairs behind the flags, as OPTIM.MAX_EPOCH 5"
            self.error(f"there is no flag {unknown[0]}{hint}{pairs if self.takes_pairs else ''}")
        if self.takes_pairs:
            if parsed.opts:
                first = parsed.opts[0]
                raise UserError(f"{first!r} is neither a flag nor a config key; see --help")
            late = [word for word in words[at:] if word.startswith("--")]
            if late:
                raise UserError(f"{late[0]} comes after KEY VALUE pairs: give flags first")
            parsed.opts, parsed.command_line = words[at:], f"{self.prog} {shlex.join(words)}"
        return parsed, unknown

    def error(self, message: str) -> NoReturn:
        choice = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message)
        hint = nearest(choice[1], re.findall(r"[\w-]+", choice[2])) if choice else ""
        raise UserError(f"{message}{hint}; --help lists the flags")


def _at_home(word: str) -> str:
    """Return a word of a command line with the home folder for ``~``.

    >>> from pathlib import Path
    >>> _at_home("--output-dir=~/runs") == f"--output-dir={Path.home()}/runs"
    True
    >>> _at_home("--grid"), _at_home("a~b")
    ('--grid', 'a~b')
    """
    flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    # Path.expanduser raises if there is no such user; a class name may start with ~.
    return f"{flag}{equals}{os.path.expanduser(value)}"  # noqa: PTH111


def status_of(
    command: Callable[[], Any], *, room: str = "", interrupted: str = "interrupted"
) -> int:
    """Run a command and return its exit status: 0, or the status that the command returns.

    ``UserError``, ``OSError`` and ``UnicodeEncodeError`` (a path or a name that the process cannot
    encode) give one line on stderr and status 2. Ctrl-C gives 130. SIGTERM,
    which batch systems send before SIGKILL, gives 143. If the reader of stdout has gone, as with
    ``| head``, the status is 1 and nothing is printed.

    Args:
        command: the function to run.
        room: advice after an ``OSError``, such as "give another folder"; on a full disk it is one
            of two.
        interrupted: message after ctrl-C or SIGTERM.

    >>> status_of(lambda: None)
    0
    """
    stdout = sys.stdout
    try:
        with _sigterm_raises():
            status = command()
        sys.stdout.flush()
    except UserError as error:
        return _failed(str(error))
    except BrokenPipeError:
        # Otherwise Python complains when it flushes the rest of stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())
        return 1
    except UnicodeEncodeError as error:
        signs = error.object[error.start : error.end]
        return _failed(
            f"this process cannot encode {signs!r} as {error.encoding}: set PYTHONUTF8=1; if that "
            "does not help, the name of a file or a class is not in UTF-8: rename it"
        )
    except OSError as error:
        if is_too_many(error):
            return _failed(TOO_MANY)
        parts = error.filename2 or error.filename, error.strerror or error
        reason = ": ".join(str(part) for part in parts if part)
        more_space = "free some space" if error.errno in _IS_FULL else ""
        advice = ", or ".join(filter(None, [more_space, room]))
        return _failed(f"{reason}; {advice}" if advice else reason)
    except Exception:
        if world_size() > 1:  # the traces of all processes are mixed on one terminal
            print(f"error in rank {rank()} of {world_size()}:", file=sys.stderr)
        raise
    except (KeyboardInterrupt, _Terminated) as stop:
        if is_main():
            print(interrupted, file=sys.stderr)
        return 128 + (signal.SIGTERM if isinstance(stop, _Terminated) else signal.SIGINT)
    finally:
        if sys.stdout is not stdout:  # a Logger, which also writes to a file
            with contextlib.suppress(OSError):  # a full disk, which was reported before
                sys.stdout.close()
            sys.stdout = stdout
    return status or 0


class _Terminated(BaseException):
    """Raised in the main thread when SIGTERM arrives."""


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """End the block with an exception at SIGTERM, so that no file is left half written."""
    is_ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    )

    def stop(*_: object) -> NoReturn:
        raise _Terminated

    if is_ours:
        signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        if is_ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


@functools.cache
def tell_uncaught_in_one_line() -> None:
    """Let a script that ends with an uncaught ``UserError`` print one line, and exit with status 2.

    Python's own hook, or that of a debugger, gets every other exception.
    """
    others = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, UserError):
            sys.exit(_failed(str(error)))
        others(kind, error, trace)

    sys.excepthook = hook


def _failed(message: str) -> int:
    where = f" in rank {rank()} of {world_size()}" if world_size() > 1 else ""
    print(f"error{where}: {' '.join(message.splitlines())}", file=sys.stderr)
    return 2

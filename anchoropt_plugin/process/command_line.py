"""What all command lines share: a parser, and what becomes of errors: one line and a status."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from ..errors import UserError, nearest
from .distributed import is_main, rank, world_size


class Parser(argparse.ArgumentParser):
    """Raises a ``UserError`` for a command line that it does not understand."""

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            hint = nearest(unknown[0].partition("=")[0], self._option_string_actions)
            self.error(f"there is no flag {unknown[0]}{hint}")
        return parsed, unknown

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the flags")


def status_of(
    command: Callable[[], Any], *, room: str = "", interrupted: str = "interrupted"
) -> int:
    """Run a command and return its exit status: 0, or what it returns.

    An error that is the user's to mend is one line on stderr and status 2; ctrl-C gives 130, and
    SIGTERM, which batch systems send ahead of SIGKILL, 143. Where nobody reads what is printed any
    more, as after ``| head``, it ends quietly with 1.

    Args:
        command: what is run.
        room: what to do where a file cannot be written or read, such as "give another folder".
        interrupted: what is said after ctrl-C and SIGTERM.

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
    except FloatingPointError as error:
        return _failed(f"{error} (try PREC fp32, or a lower OPTIM.LR)")
    except BrokenPipeError:
        # Else Python complains when it flushes what is left.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())
        return 1
    except OSError as error:
        parts = error.filename2 or error.filename, error.strerror or error
        reason = ": ".join(str(part) for part in parts if part)
        return _failed(f"{reason}; {room}" if room else reason)
    except Exception as error:
        if str(error).startswith("DataLoader worker"):  # torch raises it in the middle of a step
            return _failed(
                f"{' '.join(str(error).split())} If memory ran out, lower DATALOADER.NUM_WORKERS; "
                "the same command goes on from the last checkpoint"
            )
        if world_size() > 1:  # what Python prints of them is mixed with what the others print
            print(f"error in rank {rank()} of {world_size()}:", file=sys.stderr)
        raise
    except KeyboardInterrupt:
        if is_main():
            print(interrupted, file=sys.stderr)
        return 130
    except _Terminated:
        if is_main():
            print(interrupted, file=sys.stderr)
        return 128 + signal.SIGTERM
    finally:
        if sys.stdout is not stdout:  # a copy to a log file
            with contextlib.suppress(OSError):  # of a full disk, which was told already
                sys.stdout.close()
            sys.stdout = stdout
    return status or 0


class _Terminated(BaseException):
    """SIGTERM has come."""


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """End the block by an exception at SIGTERM, so that nothing is left half written."""
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


def _failed(message: str) -> int:
    who = f" in rank {rank()} of {world_size()}" if world_size() > 1 else ""
    print(f"error{who}: {' '.join(message.splitlines())}", file=sys.stderr)
    return 2

"""What all command lines share: a parser, and what becomes of errors: one line and a status."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from .errors import UserError, nearest


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

    An error that is the user's to mend is one line on stderr and status 2; ctrl-C gives 130. Where
    nobody reads what is printed any more, as after ``| head``, it ends quietly with 1.

    Args:
        command: what is run.
        room: what to do where a file cannot be written or read, such as "give another folder".
        interrupted: what is said after ctrl-C.

    >>> status_of(lambda: None)
    0
    """
    stdout = sys.stdout
    try:
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
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
    finally:
        if sys.stdout is not stdout:  # a copy to a log file
            sys.stdout.close()
            sys.stdout = stdout
    return status or 0


def _failed(message: str) -> int:
    print(f"error: {' '.join(message.splitlines())}", file=sys.stderr)
    return 2

"""Recognise the error of a process that may not open another file."""

from __future__ import annotations

import errno

TOO_MANY = "too many open files: raise the limit (ulimit -n 4096), or use fewer worker processes"
"""What is wrong, and what to do."""


def is_too_many(error: BaseException) -> bool:
    """Return whether ``error`` says that too many files are open.

    torch raises a ``RuntimeError`` with the same words.

    >>> is_too_many(OSError(errno.EMFILE, "Too many open files")), is_too_many(OSError("full"))
    (True, False)
    """
    is_errno = isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)
    return is_errno or str(error).startswith("Too many open files")

"""``UserError``, the error that the user can fix, and the nearest name to a misspelt one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """An error that the user can fix: one line saying what is wrong, where, and what to do.

    Commands print the message and exit with status 2. Library users catch this class like any
    other exception.

    >>> UserError("names of files\\nmay have line breaks")
    UserError('names of files may have line breaks')
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))


def nearest(name: str, candidates: Iterable[str]) -> str:
    """Return a hint at the candidate most similar to ``name``, or an empty string.

    >>> nearest("ViT-B16", ["RN50", "ViT-B/16"])
    " (did you mean 'ViT-B/16'?)"
    >>> nearest("something else", ["RN50"])
    ''
    """
    by_lower_case = {candidate.lower(): candidate for candidate in candidates}
    found = difflib.get_close_matches(name.lower(), by_lower_case, n=1)
    return f" (did you mean {by_lower_case[found[0]]!r}?)" if found else ""

"""Read numbers of the GPU without a wait: the host reads a number when its copy has arrived."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakSet

from torch import Tensor, cuda


class LateNumber:
    """A scalar tensor whose copy to the host is under way; ``float`` reads the copy.

    Args:
        value: one element, on any device. Later changes of ``value`` do not change the copy.

    >>> import torch
    >>> float(LateNumber(torch.tensor(1.5)))
    1.5
    """

    def __init__(self, value: Tensor) -> None:
        # A copy that does not block lands in pinned memory.
        self._copy = value.detach().to("cpu", non_blocking=True, copy=True)
        self._event: cuda.Event | None = None
        if value.is_cuda:
            self._event = cuda.Event()
            self._event.record()

    def __float__(self) -> float:
        if self._event is not None and not self._event.query():
            self._event.synchronize()
        self._event = None
        return float(self._copy)


def late_numbers(summary: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the numbers of a step, those of a GPU as copies that are under way."""
    items = (summary or {}).items()
    return {name: LateNumber(x) if isinstance(x, Tensor) else x for name, x in items}


class LateCheck:
    """Raises an error if a flag was false. On the CPU at once, on a GPU at the next call.

    Args:
        error: raised if a flag was false.

    >>> import torch
    >>> check = LateCheck(RuntimeError("the prompts have changed"))
    >>> check.expect(torch.tensor(True))
    >>> check.expect(torch.tensor(False))
    Traceback (most recent call last):
        ...
    RuntimeError: the prompts have changed
    """

    def __init__(self, error: Exception) -> None:
        self.error = error
        self._unread: LateNumber | None = None
        _checks.add(self)

    def expect(self, flag: Tensor) -> None:
        """Check the previous flag, then note ``flag``, a boolean scalar on any device."""
        self.settle()
        self._unread = LateNumber(flag)
        if not flag.is_cuda:
            self.settle()

    def settle(self) -> None:
        """Check the flag that was noted last, if any."""
        flag, self._unread = self._unread, None
        if flag is not None and not float(flag):
            raise self.error

    def __getstate__(self) -> dict[str, object]:
        # A copy of a model has no check under way.
        return {"error": self.error, "_unread": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        _checks.add(self)


_checks: WeakSet[LateCheck] = WeakSet()


def settle_all() -> None:
    """Check the last flags of all checks of this process."""
    for check in list(_checks):
        check.settle()

"""Check a flag on the GPU without a wait: the host reads the flag one call later."""

from __future__ import annotations

from torch import Tensor, cuda


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
        self._pending: tuple[Tensor, cuda.Event | None] | None = None

    def expect(self, flag: Tensor) -> None:
        """Check the previous flag, then note ``flag``, a boolean scalar on any device."""
        self.settle()
        event = None
        at_host = flag.to("cpu", non_blocking=True)
        if flag.is_cuda:
            event = cuda.Event()
            event.record()
        self._pending = at_host, event
        if event is None:
            self.settle()

    def settle(self) -> None:
        """Check the flag that was noted last, if any."""
        if self._pending is None:
            return
        flag, event = self._pending
        self._pending = None
        if event is not None and not event.query():
            event.synchronize()
        if not flag:
            raise self.error

    def __getstate__(self) -> dict[str, object]:
        # A copy of a model has no check under way.
        return {"error": self.error, "_pending": None}

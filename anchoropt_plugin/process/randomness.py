"""Random numbers in several processes: one shared stream, and one per process for its views."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch

from . import distributed


def share_randomness() -> None:
    """Copy the state of the main process's random generators to all processes."""
    if not distributed.is_started():
        return
    state = random_state()
    # Each process uses a GPU of its own: the state of the main one's GPU is sent separately.
    of_gpu = torch.cuda.get_rng_state() if state["cuda"] else None
    state, of_gpu = distributed.from_main((state, of_gpu))
    restore_random_state(state)
    if of_gpu is not None and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(of_gpu)


class OwnRandomness:
    """A random stream of this process alone; drawing from it leaves the shared stream unchanged.

    The seed comes from the shared stream, so that a resumed run draws the same numbers as an
    uninterrupted one.
    """

    def __init__(self) -> None:
        shared = random_state()
        seed = int(torch.randint(2**31, ())) + distributed.rank()
        set_random_seed(seed)
        self._state = random_state()
        restore_random_state(shared)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Draw from this stream while the block runs."""
        shared = random_state()
        restore_random_state(self._state)
        try:
            yield
        finally:
            self._state = random_state()
            restore_random_state(shared)


def set_random_seed(seed: int) -> None:
    """Seed ``random``, numpy and torch, on all devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def torch_state(device: torch.device) -> torch.Tensor:
    """Return the state of torch's random generator of a device."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def random_state() -> dict[str, Any]:
    """Return the state of all random generators as tensors and plain containers."""
    name, keys, *rest = cast(tuple[Any, ...], np.random.get_state(legacy=True))
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Restore the state of all random generators from :func:`random_state`."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    # A run may resume on a machine with other devices.
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])

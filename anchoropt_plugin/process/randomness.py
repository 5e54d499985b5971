"""Random numbers in several processes: one stream that all share, and one of each for its views."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch

from . import distributed


def share_randomness() -> None:
    """Put the random generators of all processes in the state of the main one's."""
    if not distributed.is_started():
        return
    state = random_state()
    # Each process has a GPU of its own, and the main one's generator is that of another.
    of_gpu = torch.cuda.get_rng_state() if state["cuda"] else None
    state, of_gpu = distributed.from_main((state, of_gpu))
    restore_random_state(state)
    if of_gpu is not None and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(of_gpu)


class OwnRandomness:
    """A stream of random numbers for each process; what is drawn from it is not drawn from theirs.

    It starts from the state of the shared stream, so that a run which is taken up again draws what
    it would have drawn.
    """

    def __init__(self) -> None:
        shared = random_state()
        seed = int(torch.randint(2**31, ())) + distributed.rank()
        set_random_seed(seed)
        self._state = random_state()
        restore_random_state(shared)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Draw from this stream meanwhile."""
        shared = random_state()
        restore_random_state(self._state)
        try:
            yield
        finally:
            self._state = random_state()
            restore_random_state(shared)


def set_random_seed(seed: int) -> None:
    """Seed ``random``, numpy, and torch on all devices."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """Return the state of all random generators, in tensors and plain containers."""
    name, keys, *rest = cast(tuple[Any, ...], np.random.get_state(legacy=True))
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Put the random generators in a state that :func:`random_state` returned."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    # A run may go on on a machine with other devices.
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])

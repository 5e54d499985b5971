"""Several processes, one for each GPU, as ``torchrun`` starts them: who is who, and how they talk.

Without torchrun there is one process, the main one, and what is here gives back what it is given.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from ..errors import UserError

TIMEOUT = timedelta(minutes=30)
"""So long a process waits for the others: the main one may have a large data set to read first."""

_ENVIRONMENT = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}

Value = TypeVar("Value")


def is_launched() -> bool:
    """Whether torchrun started this process as one of several."""
    return os.environ.keys() >= _ENVIRONMENT and int(os.environ["WORLD_SIZE"]) > 1


def is_started() -> bool:
    """Whether this process talks to others."""
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    """How many processes there are."""
    if is_started():
        return dist.get_world_size()
    return int(os.environ["WORLD_SIZE"]) if is_launched() else 1


def rank() -> int:
    """The number of this process, from 0."""
    if is_started():
        return dist.get_rank()
    return int(os.environ["RANK"]) if is_launched() else 0


def is_main() -> bool:
    """Whether this is the process that prints and writes."""
    return rank() == 0


def start(use_cuda: bool) -> None:
    """Meet the other processes, where torchrun started some; calling it again changes nothing.

    Each takes the GPU of its local rank. On the CPU they talk through gloo.

    Raises:
        UserError: there are fewer GPUs than processes, or the others do not come.
    """
    if is_started() or not is_launched():
        return
    backend = "gloo"
    if use_cuda and torch.cuda.is_available():
        local, found = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= found:
            raise UserError(f"this machine has {found} GPU(s): give --nproc_per_node={found}")
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    with _talking():
        dist.init_process_group(backend, timeout=TIMEOUT)


_parted: list[Any] = []


def stop() -> None:
    """Part from the other processes, when all have come to this point."""
    if is_started():
        barrier()
        # Kept until Python ends: where it goes at once, torch 2.4 holds Python's lock while it
        # waits for the group's threads, of which one may wait for that lock.
        _parted.append(dist.group.WORLD)
        dist.destroy_process_group()


@contextmanager
def _talking() -> Iterator[None]:
    """What torch raises when another process is gone, in one line."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0].partition(". ")[0]
        raise UserError(
            "lost the other processes: one of them ended, and said why, or was silent for "
            f"{TIMEOUT.total_seconds() / 60:g} minutes ({reason})"
        ) from error


def barrier() -> None:
    """Wait until all processes have come to this point."""
    gathered(None)


@contextmanager
def main_first() -> Iterator[None]:
    """The main process runs the block before the others do: what it writes, they find."""
    if not is_main():
        barrier()
    yield
    if is_main():
        barrier()


def from_main(value: Value) -> Value:
    """What the main process gives, in all of them; anything that can be pickled."""
    if not is_started():
        return value
    values = [value]
    with _talking():
        dist.broadcast_object_list(values, src=0)
    return values[0]


@torch.no_grad()
def copy_from_main(tensor: Tensor) -> Tensor:
    """Overwrite ``tensor`` with that of the main process, which has the same shape; returns it."""
    if is_started():
        sent = tensor.detach().contiguous()
        with _talking():
            # Some backends send no booleans.
            dist.broadcast(sent.view(torch.uint8) if sent.dtype == torch.bool else sent, src=0)
        if not is_main():
            tensor.copy_(sent)
    return tensor


def gathered(value: Value) -> list[Value]:
    """What every process gives, by rank; anything that can be pickled."""
    if not is_started():
        return [value]
    values: list[Any] = [None] * world_size()
    with _talking():
        dist.all_gather_object(values, value)
    return values


def summed(tensor: Tensor) -> Tensor:
    """Replace ``tensor`` by its sum over all processes, and return it."""
    if is_started():
        with _talking():
            dist.all_reduce(tensor)
    return tensor


def part_of(n: int, of_rank: int | None = None) -> slice:
    """Which of ``n`` things in a row are those of this process, or of another.

    The parts differ by one thing at most.

    >>> part_of(3)
    slice(0, 3, None)
    """
    place, size = rank() if of_rank is None else of_rank, world_size()
    return slice(n * place // size, n * (place + 1) // size)


def concatenated(part: Tensor, n: int) -> Tensor:
    """All ``n`` rows, in order, of which ``part`` has those that ``part_of(n)`` names."""
    if not is_started():
        return part
    padded = part.new_zeros(-(-n // world_size()), *part.shape[1:])
    padded[: len(part)] = part
    parts = [torch.empty_like(padded) for _ in range(world_size())]
    with _talking():
        dist.all_gather(parts, padded)
    lengths = (len(range(n)[part_of(n, number)]) for number in range(len(parts)))
    return torch.cat([rows[:length] for rows, length in zip(parts, lengths, strict=True)])


_batch_fraction: float | None = None


def batch_fraction() -> float:
    """Which share of the batch in work this process has; over all processes they sum to 1."""
    return 1 / world_size() if _batch_fraction is None else _batch_fraction


def set_batch_fraction(value: float) -> None:
    """Say which share of the coming batch this process has."""
    global _batch_fraction
    _batch_fraction = value


def averaged(summary: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Numbers by name, as means over the batch of all processes."""
    if not is_started() or not summary:
        return summary
    values = torch.tensor([float(value) for value in summary.values()], dtype=torch.float64)
    return dict(zip(summary, summed(values * batch_fraction()).tolist(), strict=True))

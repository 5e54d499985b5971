"""Several processes, one for each GPU, as ``torchrun`` starts them: ranks and communication.

Without torchrun there is only one process, the main one. Every function that communicates then
returns its argument unchanged.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from ..errors import UserError

TIMEOUT = timedelta(minutes=30)
"""How long a process waits for the others: the main one may have to read a large data set first."""

_ENVIRONMENT = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}

Value = TypeVar("Value")


def is_launched() -> bool:
    """Return whether torchrun started this process as one of several."""
    return os.environ.keys() >= _ENVIRONMENT and int(os.environ["WORLD_SIZE"]) > 1


def is_started() -> bool:
    """Return whether ``torch.distributed`` is initialised in this process."""
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    """Return the number of processes."""
    if is_started():
        return dist.get_world_size()
    return int(os.environ["WORLD_SIZE"]) if is_launched() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    if is_started():
        return dist.get_rank()
    return int(os.environ["RANK"]) if is_launched() else 0


def is_main() -> bool:
    """Return whether this is the main process, which prints and writes files."""
    return rank() == 0


def start(use_cuda: bool) -> None:
    """Join the other processes, if torchrun started several. A second call changes nothing.

    Each process takes the GPU of its local rank. On the CPU the processes communicate by gloo.

    Args:
        use_cuda: whether to use a GPU if there is one.

    Raises:
        UserError: fewer GPUs than processes, or processes that do not join.
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


_ended_groups: list[Any] = []


def stop() -> None:
    """Wait for the other processes, then leave the group."""
    if is_started():
        barrier()
        # The list keeps the group alive until Python ends. If the group were freed here, torch 2.4
        # would hold Python's lock while it waits for threads that may need the same lock.
        _ended_groups.append(dist.group.WORLD)
        dist.destroy_process_group()


def leave(status: int) -> NoReturn:
    """End this process with an exit status, as ``sys.exit`` does.

    A process of torchrun does not wait until Python has freed all objects: threads of torch (2.14,
    gloo) abort it there now and then, after a successful run, if the machine is busy.
    """
    if is_launched():
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


@contextmanager
def _talking() -> Iterator[None]:
    """Turn torch's error about a lost process into a ``UserError`` of one line."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0].partition(". ")[0]
        raise UserError(
            "lost the other processes: one of them ended with its own message, or was silent for "
            f"{TIMEOUT.total_seconds() / 60:g} minutes ({reason})"
        ) from error


def barrier() -> None:
    """Wait until all processes have reached this point."""
    gathered(None)


@contextmanager
def main_first() -> Iterator[None]:
    """Run the block in the main process first, so that the others find the files it writes."""
    if not is_main():
        barrier()
    yield
    if is_main():
        barrier()


def from_main(value: Value) -> Value:
    """Return the main process's ``value`` in all processes; pickle must know its type."""
    if not is_started():
        return value
    values = [value]
    with _talking():
        dist.broadcast_object_list(values, src=0)
    return values[0]


@torch.no_grad()
def copy_from_main(tensor: Tensor) -> Tensor:
    """Overwrite ``tensor`` with the main process's tensor of the same shape, and return it."""
    if is_started():
        sent = tensor.detach().contiguous()
        with _talking():
            # Some backends cannot send booleans.
            dist.broadcast(sent.view(torch.uint8) if sent.dtype == torch.bool else sent, src=0)
        if not is_main():
            tensor.copy_(sent)
    return tensor


def gathered(value: Value) -> list[Value]:
    """Return the ``value`` of every process, in order of rank; pickle must know the type."""
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
    """Return the slice of ``n`` items that belongs to this process, or to rank ``of_rank``.

    The parts differ by one item at most.

    >>> part_of(3)
    slice(0, 3, None)
    """
    place, size = rank() if of_rank is None else of_rank, world_size()
    return slice(n * place // size, n * (place + 1) // size)


def concatenated(part: Tensor, n: int) -> Tensor:
    """Return all ``n`` rows in order, given each process's rows ``part_of(n)`` as ``part``."""
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
    """Return this process's fraction of the current batch; the fractions sum to 1."""
    return 1 / world_size() if _batch_fraction is None else _batch_fraction


def set_batch_fraction(value: float) -> None:
    """Set this process's fraction of the next batch."""
    global _batch_fraction
    _batch_fraction = value


def averaged(summary: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return numbers by name, averaged over the whole batch of all processes."""
    if not is_started() or not summary:
        return summary
    values = torch.tensor([float(value) for value in summary.values()], dtype=torch.float64)
    return dict(zip(summary, summed(values * batch_fraction()).tolist(), strict=True))

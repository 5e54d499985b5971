"""A pretend GPU: tensors that PyTorch takes for CUDA tensors, with their numbers on the CPU.

Dispatch, autocast, autograd, ``.to`` and ``.numpy`` are PyTorch's own for ``cuda:0``. An operator
that reaches the device has its devices checked as CUDA checks them, and then runs on the CPU. The
record counts launches and waits of the host. docs/launches.md lists what a pretend GPU cannot see.

Use it in a process of its own: it overwrites one entry of a C++ table for good.
"""

from __future__ import annotations

from .device import pretend_gpu
from .record import Record
from .tensor import GPUTensor
from .torch_internals import unavailable

__all__ = ["GPUTensor", "Record", "pretend_gpu", "unavailable"]

"""The private names of PyTorch that a pretend GPU needs, and the check that they are there."""

from __future__ import annotations

import atexit
import ctypes
import pkgutil
import re
import sys
from functools import cache
from pathlib import Path

import torch

PRIVATE_NAMES = (
    "torch._C._disabled_torch_function_impl",
    "torch._C._ensureCUDADeviceGuardSet",
    "torch._C._only_lift_cpu_tensors",
    "torch._C._set_only_lift_cpu_tensors",
    "torch.Tensor._make_wrapper_subclass",
    "torch.cuda._lazy_init",
    "torch.optim.optimizer._foreach_supported_types",
    "torch.utils._python_dispatch.TorchDispatchMode",
)
FUSED_ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"
_FOLDER = Path(torch.__file__).parent
_HEADER = _FOLDER / "include/ATen/detail/AcceleratorHooksInterface.h"
_LIBRARY = _FOLDER / "lib/libtorch_cpu.so"
_HOOKS = "_ZN2at6detail12getCUDAHooksEv"
_METHOD = "hasPrimaryContext"
_TABLE_SIZE = 160
"""Entries of the C++ table that are copied: more than it has."""

_alive: list[object] = []
"""What the overwritten entry points to; it must live as long as the process."""


@cache
def unavailable() -> str:
    """Why there is no pretend GPU with this build of PyTorch, or ""."""
    if torch.cuda.is_available():
        return "this machine has a GPU"
    if torch.version.cuda is None or not sys.platform.startswith("linux"):
        return "this build of PyTorch has no CUDA"
    missing = [name for name in PRIVATE_NAMES if not _exists(name)]
    if missing:
        return f"PyTorch {torch.__version__} has no {missing[0]}"
    if not hasattr(torch.ops.aten, FUSED_ATTENTION):
        return f"PyTorch {torch.__version__} has no aten::{FUSED_ATTENTION}"
    if _slot() is None or not hasattr(ctypes.CDLL(str(_LIBRARY)), _HOOKS):
        return f"PyTorch {torch.__version__} has no {_METHOD} where it is expected"
    return ""


def let_autograd_run() -> None:
    """Make CUDA deny that any device has a context, once for the process.

    The autograd engine asks for the context of each device, and without a GPU the question fails.
    """
    if _alive:
        return
    slot = _slot()
    assert slot is not None  # unavailable() was asked
    hooks_of = getattr(ctypes.CDLL(str(_LIBRARY)), _HOOKS)
    hooks_of.restype = ctypes.c_void_p
    pointer = ctypes.c_void_p.from_address(hooks_of())
    entries = ctypes.c_void_p * min(_TABLE_SIZE, slot + 80)
    # Two entries before the first method describe the type.
    table = entries(*entries.from_address(pointer.value - 16))  # type: ignore[operator]
    answer = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_int8)(lambda *_: False)
    table[slot + 2] = ctypes.cast(answer, ctypes.c_void_p).value  # type: ignore[call-overload]
    # Python frees its function at exit, while C++ may still call it.
    atexit.register(setattr, pointer, "value", pointer.value)
    pointer.value = ctypes.addressof(table) + 16
    _alive.extend((answer, table))
    torch._C._ensureCUDADeviceGuardSet()


def _slot() -> int | None:
    """The place of the method in the C++ table: PyTorch's header lists its methods in order."""
    if not _HEADER.is_file() or not _LIBRARY.is_file():
        return None
    methods = re.findall(r"virtual\s+[\w:<>&\s*]*?(~?\w+)\s*\(", _HEADER.read_text())
    # The destructor before it has two entries.
    return methods.index(_METHOD) + 1 if _METHOD in methods else None


def _exists(name: str) -> bool:
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True

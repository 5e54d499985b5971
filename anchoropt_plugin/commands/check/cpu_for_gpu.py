"""Run a host that asks for a GPU on the CPU: some write ``.cuda()`` or ``.half()``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class CpuForGpu(TorchFunctionMode):
    """Inside the context manager, torch puts on the CPU what a host puts on a GPU, and counts one.

    >>> with CpuForGpu():
    ...     a = torch.zeros(2, device="cuda:0")
    ...     b = torch.nn.Linear(2, 2).cuda()(a.to("cuda").cuda())
    ...     n_gpus = torch.cuda.device_count()
    >>> a.device, b.device, n_gpus
    (device(type='cpu'), device(type='cpu'), 1)
    """

    def __enter__(self) -> CpuForGpu:
        self._one = mock.patch.object(torch.cuda, "device_count", lambda: 1)
        self._one.start()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._one.stop()

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is Tensor.cuda:
            return args[0]
        given = [_on_cpu(value) for value in args]
        named = {name: _on_cpu(value) for name, value in (kwargs or {}).items()}
        if func not in _PRODUCTS or not _all_half([*given, *named.values()]):
            return func(*given, **named)
        found = func(*map(_float, given), **{name: _float(x) for name, x in named.items()})
        return _half(found) if isinstance(found, Tensor) else tuple(map(_half, found))


# A GPU adds products of half precision in float32, too; in half, a CPU takes 40 times longer.
_PRODUCTS = (F.linear, F.multi_head_attention_forward)


def _all_half(values: Sequence[Any]) -> bool:
    """Return whether all floating-point tensors are of half precision."""
    tensors = [x for x in values if isinstance(x, Tensor) and x.is_floating_point()]
    return all(x.dtype == torch.float16 for x in tensors)


def _float(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def _half(value: Any) -> Any:
    return value.half() if isinstance(value, Tensor) else value


def _on_cpu(value: Any) -> Any:
    is_gpu = (isinstance(value, torch.device) and value.type == "cuda") or (
        isinstance(value, str) and value.split(":")[0] == "cuda"
    )
    return torch.device("cpu") if is_gpu else value

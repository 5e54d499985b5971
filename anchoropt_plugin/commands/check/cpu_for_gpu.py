"""Run a host that asks for a GPU on the CPU: some write ``.cuda()`` on any machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor
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
        named = {name: _on_cpu(value) for name, value in (kwargs or {}).items()}
        return func(*map(_on_cpu, args), **named)


def _on_cpu(value: Any) -> Any:
    is_gpu = (isinstance(value, torch.device) and value.type == "cuda") or (
        isinstance(value, str) and value.split(":")[0] == "cuda"
    )
    return torch.device("cpu") if is_gpu else value

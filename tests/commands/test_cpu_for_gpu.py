"""Half precision in ``check`` without a GPU: products are added in float32, as a GPU adds them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from anchoropt_plugin.commands.check import command
from anchoropt_plugin.commands.check.cpu_for_gpu import CpuForGpu


class Dtypes(TorchDispatchMode):
    """Records the dtypes of matrix products."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in {"mm", "addmm", "bmm", "baddbmm"}:
            self.seen.update(x.dtype for x in args if isinstance(x, torch.Tensor))
        return func(*args, **(kwargs or {}))


def test_products_of_half_precision_are_added_in_float32():
    torch.manual_seed(0)
    attention, linear = nn.MultiheadAttention(16, 2).half(), nn.Linear(16, 4).half()
    x = torch.randn(5, 2, 16).half().requires_grad_()
    with CpuForGpu(), Dtypes() as dtypes:
        y = linear(attention(x, x, x)[0])
        y.sum().backward()
    assert dtypes.seen == {torch.float32}
    assert y.dtype == x.grad.dtype == linear.weight.grad.dtype == torch.float16
    found = y.detach(), x.grad.clone()
    x.grad = None
    x64 = x.detach().double().requires_grad_()
    y64 = linear.double()(attention.double()(x64, x64, x64)[0])
    y64.sum().backward()
    for half, wanted in zip(found, (y64.detach(), x64.grad), strict=True):
        torch.testing.assert_close(half.double(), wanted, rtol=0, atol=4e-3)


def test_products_of_two_dtypes_stay_an_error():
    with CpuForGpu(), pytest.raises(RuntimeError, match="dtype"):
        nn.functional.linear(torch.zeros(2, 2).half(), torch.zeros(2, 2))


def test_the_speed_of_half_precision_on_a_cpu_is_not_reported(monkeypatch):
    forward = SimpleNamespace(encoder=nn.Identity(), in_use=True, error=1e-4)
    monkeypatch.setattr(command, "_fast_forwards", lambda trainer: [forward])
    calls = SimpleNamespace(given={forward.encoder: (torch.zeros(1, 77, 4).half(),)})
    replaced, speed = command._fast_branch(None, calls)
    assert replaced.startswith("replaces Identity") and speed.startswith("time and memory not")

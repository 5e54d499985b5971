"""A pretend GPU refuses what CUDA refuses, and notes what the host waits for."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from benchmarks.pretend_gpu import pretend_gpu

with pretend_gpu():
    pass

REFUSED = {
    "two devices": lambda gpu, cpu: gpu + cpu,
    "two devices in a product": lambda gpu, cpu: gpu @ cpu.t(),
    "two devices in a list": lambda gpu, cpu: torch.cat([gpu, cpu]),
    "numpy": lambda gpu, cpu: gpu.numpy(),
    "an index on the GPU": lambda gpu, cpu: cpu[torch.tensor([0], device="cuda")],
    "labels on the CPU": lambda gpu, cpu: F.cross_entropy(gpu, torch.tensor([0, 1])),
    "a generator of the CPU": lambda gpu, cpu: gpu.normal_(generator=torch.Generator()),
    "two dtypes": lambda gpu, cpu: gpu.half() @ gpu.t(),
    "a result on the CPU": lambda gpu, cpu: cpu.add_(gpu),
    "a mask on the CPU": lambda gpu, cpu: gpu.masked_fill(cpu > 0, 0.0),
    "a mask of another dtype": lambda gpu, cpu: F.scaled_dot_product_attention(
        *[gpu.half()[None, None]] * 3, attn_mask=gpu
    ),
}
WAITS = {
    "item": (lambda gpu, cpu: gpu.sum().item(), "_local_scalar_dense"),
    "bool": (lambda gpu, cpu: bool(gpu.any()), "_local_scalar_dense"),
    "tolist": (lambda gpu, cpu: gpu.tolist(), "copy to the host"),
    "to the CPU": (lambda gpu, cpu: gpu.cpu(), "copy to the host"),
    "to the GPU": (lambda gpu, cpu: cpu.cuda(), "copy to the GPU"),
    "a mask": (lambda gpu, cpu: gpu[gpu > 0], "index by a mask"),
    "nonzero": (lambda gpu, cpu: gpu.nonzero(), "nonzero"),
    "equal": (lambda gpu, cpu: torch.equal(gpu, gpu), "equal"),
    "an index on the CPU": (lambda gpu, cpu: gpu[torch.tensor([0])], "copy of an index"),
    "copy_": (lambda gpu, cpu: cpu.copy_(gpu), "copy"),
    "copy_ into memory that is not pinned": (
        lambda gpu, cpu: cpu.copy_(gpu, non_blocking=True),
        "copy",
    ),
    "synchronize": (lambda gpu, cpu: torch.cuda.synchronize(), "synchronize"),
}
NO_WAITS = {
    "to the GPU": lambda gpu, cpu: cpu.pin_memory().to("cuda", non_blocking=True),
    "to the CPU": lambda gpu, cpu: gpu.to("cpu", non_blocking=True),
    "into pinned memory": lambda gpu, cpu: torch.empty(2, 2, pin_memory=True).copy_(
        gpu, non_blocking=True
    ),
    "a number": lambda gpu, cpu: gpu * 2 + torch.tensor(1.0),
    "an index on the GPU": lambda gpu, cpu: gpu[torch.zeros(1, dtype=torch.long, device="cuda")],
    "a product": lambda gpu, cpu: gpu @ gpu,
}


@pytest.fixture
def tensors(gpu):
    return torch.randn(2, 2, device="cuda"), torch.randn(2, 2)


@pytest.mark.parametrize("fault", REFUSED)
def test_what_cuda_refuses_is_refused(fault, tensors):
    with pytest.raises((RuntimeError, TypeError)):
        REFUSED[fault](*tensors)


@pytest.mark.parametrize("name", WAITS)
def test_a_wait_is_noted_with_its_line(name, tensors, gpu):
    work, kind = WAITS[name]
    gpu.clear()
    work(*tensors)
    (where,) = gpu.waits
    assert where.startswith(f"{kind} at tests/gpu/gpu_faults.py:")


@pytest.mark.parametrize("name", NO_WAITS)
def test_what_needs_no_wait_is_none(name, tensors, gpu):
    gpu.clear()
    NO_WAITS[name](*tensors)
    assert not gpu.waits


def test_launches_are_operators_that_are_no_views(tensors, gpu):
    on_gpu, _ = tensors
    gpu.clear()
    on_gpu.t().unsqueeze(0).expand(3, -1, -1)
    torch.empty(3, device="cuda")
    assert not gpu.launches
    (on_gpu.requires_grad_() @ on_gpu).sum().backward()
    assert gpu.launches["mm"] == 3


def test_nothing_is_left_afterwards():
    assert not torch.cuda.is_available()
    assert F.scaled_dot_product_attention is torch._C._nn.scaled_dot_product_attention
    with pytest.raises((AssertionError, RuntimeError)):
        torch.zeros(1, device="cuda")

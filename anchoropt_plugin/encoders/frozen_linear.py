"""Linear maps with frozen weights; on the CPU, oneDNN computes them.

In float32 ``F.linear`` uses the BLAS that PyTorch was built with. Its kernels are slow on some
processors; oneDNN, which is also part of PyTorch, is then faster at the same precision
(``benchmarks/linear.py`` measures both).
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

FEW = 16
"""For fewer rows oneDNN uses kernels that round differently (torch 2.4; later, for one row)."""


def frozen_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x · Wᵀ + b for x (n, d_in), W (d_out, d_in) and b (d_out,).

    ``F.linear`` computes it if oneDNN does not apply: on other devices, in other precisions, under
    autocast, and for trained weights.

    >>> x, weight, bias = torch.randn(5, 3), torch.randn(4, 3), torch.randn(4)
    >>> torch.allclose(frozen_linear(x, weight, bias), F.linear(x, weight, bias), atol=1e-5)
    True
    """
    trained = weight.requires_grad or (bias is not None and bias.requires_grad)
    if trained or not _onednn_applies() or not _fits(x, weight, bias):
        return F.linear(x, weight, bias)
    out: Tensor = _FrozenLinear.apply(x, weight, bias)
    return out


def frozen_products(device: torch.device) -> AbstractContextManager[Any]:
    """Let oneDNN compute the matrix products of an encoder's own forward.

    For any encoder that runs without a graph; its code is unchanged. The result of a row does not
    depend on the number of rows.

    >>> linear, x = torch.nn.Linear(3, 4), torch.randn(5, 3)
    >>> with torch.no_grad(), frozen_products(x.device):
    ...     y = linear(x)
    >>> torch.allclose(y, linear(x), atol=1e-5)
    True
    """
    # A mode costs each operator some microseconds, and hides autocast from fused operators.
    applies = device.type == "cpu" and _onednn_applies()
    return _FrozenProducts() if applies else contextlib.nullcontext()


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return _product(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return _product(grad.contiguous(), weight.t(), None), None, None


class _FrozenProducts(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _PRODUCTS and not kwargs:
            *rest, x, weight = args
            bias = rest[0] if rest else None
            if weight.dim() == 2 and _fits(x, weight.t(), bias):
                rows = F.pad(x, (0, 0, 0, FEW - len(x))) if len(x) < FEW else x
                return _product(rows, weight.t(), bias)[: len(x)]
        return func(*args, **(kwargs or {}))


_PRODUCTS = torch.ops.aten.mm.default, torch.ops.aten.addmm.default


def _fits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether oneDNN's operator, which checks little itself, gives the result of ``F.linear``."""
    for tensor in (x, weight) if bias is None else (x, weight, bias):
        if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided:
            return False
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            return False
    if x.dim() != 2 or weight.dim() != 2 or not x.shape[1] == weight.shape[1] > 0:
        return False
    if bias is not None and not (bias.shape == weight.shape[:1] and bias.is_contiguous()):
        return False
    return weight.is_contiguous() or weight.t().is_contiguous()


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


def _onednn_applies() -> bool:
    if torch.compiler.is_compiling():  # the compiler chooses its own kernels
        return False
    return not torch.is_autocast_enabled("cpu") and _onednn_works()


@cache
def _onednn_works() -> bool:
    """Whether this build of PyTorch has the operator, and its result is right."""
    if not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    x, weight = (
        torch.randn(n, 8, generator=generator, dtype=torch.float32, device="cpu") for n in (3, 5)
    )
    try:
        return torch.allclose(_product(x, weight, None), F.linear(x, weight), atol=1e-5)
    except (AttributeError, RuntimeError):
        return False

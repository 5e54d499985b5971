"""Linear maps with frozen weights, on the CPU by oneDNN.

In float32 ``F.linear`` goes to the BLAS that PyTorch was built with. On processors that its kernels
are not made for, oneDNN, which is part of PyTorch too, is faster at the same precision
(``benchmarks/linear.py`` measures it).
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode


def frozen_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x · Wᵀ + b, for x (n, d_in), W (d_out, d_in) and b (d_out,).

    It is ``F.linear`` wherever oneDNN cannot stand in: on other devices, in other precisions, under
    autocast, or where the weights are trained.

    >>> x, weight, bias = torch.randn(5, 3), torch.randn(4, 3), torch.randn(4)
    >>> torch.allclose(frozen_linear(x, weight, bias), F.linear(x, weight, bias), atol=1e-5)
    True
    """
    plain = _is_plain(x) and _is_plain(weight)
    trained = weight.requires_grad or (bias is not None and bias.requires_grad)
    if not plain or trained or torch.is_autocast_enabled("cpu") or not _onednn_works():
        return F.linear(x, weight, bias)
    out: Tensor = _FrozenLinear.apply(x, weight, bias)
    return out


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


def frozen_products(device: torch.device) -> AbstractContextManager[Any]:
    """Where an encoder's own forward has its matrix products as ``frozen_linear`` has them.

    For encoders that run without a graph, whatever their code: only who multiplies is another.

    >>> linear, x = torch.nn.Linear(3, 4), torch.randn(5, 3)
    >>> with torch.no_grad(), frozen_products(x.device):
    ...     y = linear(x)
    >>> torch.allclose(y, linear(x), atol=1e-5)
    True
    """
    # A mode costs each operator some microseconds.
    stands_in = device.type == "cpu" and _onednn_works()
    return _FrozenProducts() if stands_in else contextlib.nullcontext()


class _FrozenProducts(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _PRODUCTS and not kwargs and all(map(_is_plain, args)):
            *rest, x, weight = args
            bias = rest[0] if rest else None
            if bias is None or bias.shape == weight.shape[1:]:
                return _product(x, weight.t(), bias)
        return func(*args, **(kwargs or {}))


_PRODUCTS = torch.ops.aten.mm.default, torch.ops.aten.addmm.default


def _is_plain(tensor: Tensor) -> bool:
    return tensor.dtype == torch.float32 and tensor.device.type == "cpu"


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


@cache
def _onednn_works() -> bool:
    """Whether this build of PyTorch has the operator, and it does what is expected of it."""
    if not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, 8, generator=generator) for n in (3, 5))
    try:
        return torch.allclose(_product(x, weight, None), F.linear(x, weight), atol=1e-5)
    except (AttributeError, RuntimeError):
        return False

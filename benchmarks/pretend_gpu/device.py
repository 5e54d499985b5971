"""The context in which there is a pretend ``cuda:0``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import optimizer

from .record import Record
from .tensor import Everywhere, GPUTensor, record
from .torch_internals import FUSED_ATTENTION, let_autograd_run, unavailable

_STATE = torch.zeros(16, dtype=torch.uint8)
ANSWERS: dict[str, Any] = {
    "_lazy_init": None,
    "current_device": 0,
    "device_count": 1,
    "get_device_name": "pretend GPU",
    "get_rng_state": _STATE,
    "get_rng_state_all": [_STATE],
    "is_available": True,
    "is_initialized": True,
    "set_rng_state": None,
    "set_rng_state_all": None,
}
"""What functions of ``torch.cuda`` return."""


class PretendEvent:
    """In place of ``torch.cuda.Event``: all work is done at once."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def record(self, *_: Any) -> None:
        pass

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        record.wait("an event")


@contextlib.contextmanager
def pretend_gpu() -> Iterator[Record]:
    """Have a ``cuda:0`` while active; yields the record of launches and waits.

    Raises:
        RuntimeError: this build of PyTorch cannot have one; ``unavailable`` says why.
    """
    if unavailable():
        raise RuntimeError(f"no pretend GPU: {unavailable()}")
    let_autograd_run()
    with contextlib.ExitStack() as stack:
        answers = {name: lambda *_, a=answer, **__: a for name, answer in ANSWERS.items()}
        answers |= {"manual_seed": _seed, "manual_seed_all": _seed}
        answers |= {"synchronize": _synchronize, "Event": PretendEvent}
        stack.enter_context(mock.patch.multiple(torch.cuda, **answers))
        stack.enter_context(mock.patch.object(Tensor, "pin_memory", _pin))
        fused = _fused_attention(F.scaled_dot_product_attention)
        stack.enter_context(mock.patch.object(F, "scaled_dot_product_attention", fused))
        _let_modules_and_optimizers_take_it(stack)
        record.clear()
        stack.enter_context(Everywhere())
        yield record


def _seed(*_: Any) -> None:
    record.seeds += 1


def _synchronize(*_: Any) -> None:
    record.wait("synchronize")


def _pin(tensor: Tensor, *_: Any) -> Tensor:
    tensor.pretends_pinned = True  # type: ignore[attr-defined]
    return tensor


def _let_modules_and_optimizers_take_it(stack: contextlib.ExitStack) -> None:
    """Parameters stay the same objects when a module moves; optimisers use their fused loops."""
    future, types = torch.__future__, optimizer._foreach_supported_types
    swaps = future.get_swap_module_params_on_conversion()
    stack.callback(future.set_swap_module_params_on_conversion, swaps)
    future.set_swap_module_params_on_conversion(True)
    stack.callback(types.remove, GPUTensor)
    types.append(GPUTensor)
    # Constants in a graph would else be lifted to the GPU, which is not there.
    stack.callback(torch._C._set_only_lift_cpu_tensors, torch._C._only_lift_cpu_tensors())
    torch._C._set_only_lift_cpu_tensors(True)


def _fused_attention(own: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Attention as one operator on the GPU: to choose among CUDA's, PyTorch would ask the GPU."""
    fused = getattr(torch.ops.aten, FUSED_ATTENTION)

    def attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        **named: Any,
    ) -> Tensor:
        if not isinstance(query, GPUTensor) or named.get("enable_gqa"):
            return own(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **named)
        if torch.is_autocast_enabled("cuda"):
            dtype = torch.get_autocast_dtype("cuda")
            query, key, value = (x.to(dtype) for x in (query, key, value))
            if attn_mask is not None and attn_mask.is_floating_point():
                attn_mask = attn_mask.to(dtype)
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            # As PyTorch does it for CUDA too.
            zero, infinity = (query.new_full((), x) for x in (0.0, -torch.inf))
            attn_mask = torch.where(attn_mask, zero, infinity)
        elif attn_mask is not None and attn_mask.dtype != query.dtype:
            raise RuntimeError(
                f"Expected attn_mask dtype to be bool or float or to match query dtype, but got "
                f"attn_mask.dtype: {attn_mask.dtype} and query.dtype: {query.dtype}"
            )
        out: Tensor = fused(
            query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
        )[0]
        return out

    return attention

"""A tensor that PyTorch takes for one on ``cuda:0``, and how an operator runs on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils import _python_dispatch

from .record import Record
from .rules import Call, check_devices, is_ours, waits_of

record = Record()
"""Of this process."""


class GPUTensor(Tensor):
    """Looks like a tensor on ``cuda:0``; ``inner`` holds its numbers on the CPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> GPUTensor:
        tensor: GPUTensor = Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device="cuda:0",
        )
        tensor.inner = inner
        return tensor

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return run(func, args, kwargs or {})

    def numpy(self, **_: Any) -> NoReturn:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    __array__ = numpy  # type: ignore[assignment]

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.inner.detach().__reduce_ex__(protocol)

    def __repr__(self) -> str:  # type: ignore[override]
        return f"GPUTensor({self.inner!r})"


class Everywhere(_python_dispatch.TorchDispatchMode):
    """Sees the operators that have no tensor of the GPU yet: ``torch.zeros(…, device="cuda")``."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operator on the CPU, and check and note what a GPU would have done."""
    call = _call(func, args, kwargs)
    if not call.ours and call.device != "cuda":
        return _on_the_cpu(call)
    check_devices(call)
    for kind in waits_of(call):
        record.wait(kind)
    inner_args, inner_kwargs = _mapped(_inner, (args, _without_device(call)))
    out = func(*inner_args, **inner_kwargs)
    if not func.is_view:
        first = out if isinstance(out, Tensor) else None
        record.launch(call.name, first.dtype if first is not None else None)
    if call.name == "copy_":
        return args[0]
    return _wrapped(out, call)


def _call(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    leaves: list[Any] = []
    _mapped(leaves.append, (args, kwargs))
    tensors = [x for x in leaves if isinstance(x, Tensor)]
    return Call(
        func,
        func._schema.name.removeprefix("aten::"),
        args,
        kwargs,
        leaves,
        [x for x in tensors if is_ours(x)],
        [x for x in tensors if not is_ours(x)],
        torch.device(kwargs["device"]).type if kwargs.get("device") else None,
    )


def _on_the_cpu(call: Call) -> Any:
    """An operator of the CPU alone; there is no pinned memory, so a tensor only pretends it."""
    if not call.kwargs.get("pin_memory"):
        return call.func(*call.args, **call.kwargs)
    out = call.func(*call.args, **{**call.kwargs, "pin_memory": False})
    out.pretends_pinned = True
    return out


def _without_device(call: Call) -> dict[str, Any]:
    if not call.device:
        return call.kwargs
    kwargs = {**call.kwargs, "device": "cpu"}
    kwargs.pop("pin_memory", None)
    return kwargs


def _wrapped(out: Any, call: Call) -> Any:
    """The result as tensors of the GPU; what an operator has written in place stays the object."""
    known = {id(x.inner): x for x in call.ours if isinstance(x, GPUTensor)}

    def wrap(x: Any) -> Any:
        if not isinstance(x, Tensor) or call.device == "cpu":
            return x
        return known[id(x)] if id(x) in known else GPUTensor(x)

    return _mapped(wrap, out)


def _mapped(function: Callable[[Any], Any], tree: Any) -> Any:
    """``function`` of everything in a tree; PyTorch's own ``tree_map`` takes half of a run."""
    if isinstance(tree, (list, tuple)):
        return type(tree)([_mapped(function, x) for x in tree])
    if isinstance(tree, dict):
        return {key: _mapped(function, x) for key, x in tree.items()}
    return function(tree)


def _inner(x: Any) -> Any:
    return x.inner if isinstance(x, GPUTensor) else x

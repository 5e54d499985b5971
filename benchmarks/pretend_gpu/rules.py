"""CUDA's rules: which operators may mix devices, and which make the host wait."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

READ_BY_THE_HOST = {
    "_local_scalar_dense",
    "_unique2",
    "bincount",
    "equal",
    "masked_select",
    "nonzero",
}
"""Operators whose result, or its size, the host needs: ``item``, ``bool``, ``tolist`` and so on."""
COPIES = {"_to_copy", "copy_"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
TAKE_A_SCALAR = {"fill_", "masked_fill_", "masked_fill"}


class Call(NamedTuple):
    """A call of an operator.

    Attributes:
        func: the operator.
        name: its name without ``aten::``.
        args, kwargs: its arguments.
        leaves: all arguments, those in lists too.
        ours: the tensors of the pretend GPU among them.
        others: the tensors of the CPU among them.
        device: the type of the device that the call asks for, or None.
    """

    func: Any
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    leaves: Sequence[Any]
    ours: Sequence[Tensor]
    others: Sequence[Tensor]
    device: str | None


def is_ours(x: Any) -> bool:
    """Whether an argument is a tensor of the pretend GPU."""
    return isinstance(x, Tensor) and x.is_cuda


def check_devices(call: Call) -> None:
    """Raise ``RuntimeError`` where CUDA refuses the devices of a call."""
    for leaf in call.leaves:
        if isinstance(leaf, torch.Generator) and leaf.device.type != "cuda":
            raise RuntimeError(
                f"{call.func}: Expected a 'cuda' device type for generator but found 'cpu'"
            )
    if not (call.ours and call.others) or call.name in COPIES:
        return
    indices = _indices(call)
    scalars_allowed = bool(
        torch.Tag.pointwise in call.func.tags or call.name in TAKE_A_SCALAR or indices
    )
    wrong = [
        x
        for x in call.others
        if not any(x is index for index in indices) and not (scalars_allowed and not x.dim())
    ]
    in_place = call.name.endswith("_") and not isinstance(call.args[0], (list, tuple))
    if wrong or (in_place and not is_ours(call.args[0])):
        raise RuntimeError(
            f"{call.func}: Expected all tensors to be on the same device, but found at least two "
            "devices, cuda:0 and cpu!"
        )


def waits_of(call: Call) -> list[str]:
    """What the host waits for in a call."""
    found = []
    if call.name in READ_BY_THE_HOST:
        found.append(call.name)
    indices = _indices(call)
    found += ["copy of an index" for index in indices if not is_ours(index)]
    if any(is_ours(index) and index.dtype in (torch.bool, torch.uint8) for index in indices):
        found.append("index by a mask")
    if call.name == "_to_copy" and not call.kwargs.get("non_blocking"):
        to_gpu = call.device == "cuda" if call.device else bool(call.ours)
        if bool(call.ours) != to_gpu:
            found.append("copy to the GPU" if to_gpu else "copy to the host")
    if call.name == "copy_" and call.ours and call.others and not _is_copied_in_time(call):
        found.append("copy")
    return found


def _indices(call: Call) -> list[Tensor]:
    """The index tensors of a call that may be on the CPU: CUDA copies them itself."""
    if call.name not in INDEXING or not is_ours(call.args[0]):
        return []
    return [x for x in call.args[1] if x is not None]


def _is_copied_in_time(call: Call) -> bool:
    """Whether ``copy_`` returns before the copy is done: to the host only into pinned memory."""
    non_blocking = call.args[2] if len(call.args) > 2 else call.kwargs.get("non_blocking", False)
    target = call.args[0]
    return bool(non_blocking) and (is_ours(target) or getattr(target, "pretends_pinned", False))

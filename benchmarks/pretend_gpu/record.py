"""What a pretend GPU writes down: launches, waits of the host, precisions, seeds."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch

ALLOCATIONS = {
    "_unsafe_view",
    "detach",
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
}
"""Operators that are no views and launch nothing."""
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "convolution"}

_HERE = str(Path(__file__).parent)
_REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass
class Record:
    """What has reached the device since ``clear``.

    Attributes:
        launches: operators that are no views, by name; on CUDA each starts at least one kernel.
        waits: what the host waited for, by kind and line of the project.
        products: matrix products, by the dtype of their result.
        seeds: how often the generator of the GPU was seeded.
    """

    launches: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    products: Counter[torch.dtype] = field(default_factory=Counter)
    seeds: int = 0

    def clear(self) -> None:
        """Start again from nothing."""
        for counter in (self.launches, self.waits, self.products):
            counter.clear()
        self.seeds = 0

    def launch(self, name: str, dtype: torch.dtype | None) -> None:
        """Count an operator that is no view."""
        if name not in ALLOCATIONS:
            self.launches[name] += 1
        if name in PRODUCTS and dtype is not None:
            self.products[dtype] += 1

    def wait(self, kind: str) -> None:
        """Note that the host waits, and for which line of the project."""
        self.waits[f"{kind} at {_line_of_the_project(sys._getframe(1))}"] += 1


def _line_of_the_project(frame: FrameType) -> str:
    """The innermost line outside PyTorch and this package; "backward" in autograd's own thread."""
    while _is_foreign(frame):
        if frame.f_back is None:
            return "backward"
        frame = frame.f_back
    path = Path(frame.f_code.co_filename)
    place = path.relative_to(_REPOSITORY) if path.is_relative_to(_REPOSITORY) else path.name
    return f"{place}:{frame.f_lineno}"


def _is_foreign(frame: FrameType) -> bool:
    name = frame.f_code.co_filename
    own_call = frame.f_code.co_name == "__torch_function__"
    return own_call or "site-packages" in name or name.startswith((_HERE, "<"))

"""What the benchmarks share: CLIP, class names, the plain text branch, measuring.

A case is one step of work done in the plain way and in ours, on the same weights and inputs. Both
are compared, and then timed in turns (plain, ours, plain, ours, …), so that whatever else the
machine does meets both; a matrix product is timed among them, which gives the machine's ceiling at
that very time. On the CPU the comparison is the plain side's warm-up.

Memory is the peak of what tensors hold during a step beyond what they held before it: on CUDA
``torch.cuda.max_memory_allocated``; on the CPU the same quantity, from the allocations and releases
that PyTorch's profiler records, in a step that is not timed unless it is very long. Weights, the
Python process and scratch memory of the BLAS library are not in it.
"""

from __future__ import annotations

import math
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from anchoropt_plugin.encoders.clip_models import CLIP, convert_weights
from anchoropt_plugin.encoders.fast_forward import FastForward
from anchoropt_plugin.encoders.frozen_linear import frozen_linear
from benchmarks.cost import VIT_B16, Cost, Sizes, cut_text, fast_text, image_tower, plain_text
from benchmarks.plain import CutTextEncoder, PlainTextEncoder, class_names

__all__ = [
    "VIT_B16",
    "Cost",
    "CutTextEncoder",
    "PlainTextEncoder",
    "Sizes",
    "class_names",
    "cut_text",
    "fast_text",
    "image_tower",
    "plain_text",
]

CUT = "cut at EOT"
"""The honest rival: the plain way, cut behind the longest prompt, frozen prompts encoded once."""
TOLERANCE = 1e-5
"""Largest relative error of features and gradients in fp32."""
EXCESS = 1.25
"""So many times the FLOPs of the cost model may ours compute; more, and it is not what it says."""
OURS_PER_ROUND = 3
"""Steps of ours for each of the plain way, as one alone would be noisy where it is short."""
LONG = 2.0
"""So many seconds are not."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# The profiler would report each start and stop on stderr.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")


class Outcome(NamedTuple):
    """What a step gave, to be compared: features or logits, and the gradients of what is learned.

    A step does the same work from the same state each time it is called.
    """

    features: Tensor
    gradients: Sequence[Tensor] = ()


class Observed(NamedTuple):
    """A step that was looked at: what it gave, its peak memory in bytes, its time."""

    outcome: Outcome
    memory: int
    seconds: float


class Side(NamedTuple):
    """One way of doing a step."""

    name: str
    step: Callable[[], Outcome]
    cost: Cost


class Case(NamedTuple):
    """A step to measure: in the plain way (None where that cannot be run), in ours, by rivals."""

    name: str
    plain: Side | None
    ours: Sequence[Side]
    rivals: Sequence[Side] = ()


@dataclass(frozen=True)
class Row:
    """What was measured of one side of a case; times in seconds, memory in bytes.

    What is relative to the plain side is None on that.
    """

    case: str
    side: str
    text_tokens: int
    flops: float
    seconds: float
    memory: int
    of_ceiling: float
    exact: bool
    counted_flops: int = 0
    faster: float | None = None
    leaner: float | None = None
    feature_error: float | None = None
    gradient_error: float | None = None

    @property
    def passed(self) -> bool:
        """Whether it computes what the cost model says, and in fp32 agrees with the plain side."""
        errors = [e for e in (self.feature_error, self.gradient_error) if e is not None]
        agrees = not self.exact or all(error <= TOLERANCE for error in errors)
        return agrees and self.counted_flops <= EXCESS * self.flops


@dataclass(frozen=True)
class Bench:
    """On what, and for how long, to measure.

    Attributes:
        sizes: of the CLIP.
        device: where everything runs.
        dtype: of the weights, as CLIP's own ``convert_weights`` chooses them.
        rounds: of timing, at most.
        seconds: no further round of a case starts after so many, and a longer step is done once.
        classes: numbers of classes to measure, or none for a benchmark's own.
    """

    sizes: Sizes
    device: torch.device
    dtype: torch.dtype
    rounds: int
    seconds: float
    classes: tuple[int, ...]

    def clip(self) -> CLIP:
        """CLIP with random weights, always the same, frozen, and still on the CPU."""
        torch.manual_seed(0)
        clip = CLIP(*astuple(self.sizes)).eval().requires_grad_(False)
        if self.dtype != torch.float32:
            convert_weights(clip)
            for parameter in clip.parameters():
                if parameter.dtype == torch.float16:
                    parameter.data = parameter.data.to(self.dtype)
        return clip

    def random(self, *shape: int) -> Tensor:
        """Standard normal numbers, always the same."""
        numbers = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
        return numbers.to(self.device, self.dtype)

    def seconds_of(self, work: Callable[[], object]) -> float:
        """How long ``work`` takes."""
        if self.device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            work()
            end.record()
            torch.cuda.synchronize()
            return start.elapsed_time(end) / 1000
        begun = time.perf_counter()
        work()
        return time.perf_counter() - begun

    def ceiling(self) -> float:
        """FLOPs a second of the machine's matrix product.

        The best of an MLP's shape and a square, by PyTorch's BLAS and by ``frozen_linear``.
        """
        large = self.device.type == "cuda"
        rows, side, width = (16384, 8192, 512) if large else (2048, 2048, 512)
        best = 0.0
        for n, k, m in ((rows, width, 4 * width), (side, side, side)):
            left = torch.randn(n, k, device=self.device, dtype=self.dtype)
            right = torch.randn(m, k, device=self.device, dtype=self.dtype)
            for product in (partial(torch.mm, left, right.t()), partial(_frozen, left, right)):
                seconds = [self.seconds_of(product) for _ in range(3)]
                best = max(best, 2 * n * k * m / min(seconds))
        return best

    def observed(self, step: Callable[[], Outcome]) -> Observed:
        """One step, looked at all over."""
        torch.manual_seed(0)
        begun = time.perf_counter()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            outcome = step()
            torch.cuda.synchronize()
            peak = torch.cuda.max_memory_allocated() - before
            return Observed(outcome, peak, time.perf_counter() - begun)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            outcome = step()
            seconds = time.perf_counter() - begun
        events = profiler.profiler.kineto_results.events()
        changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
        now = peak = 0
        for _, change in sorted(changes, key=lambda event: event[0]):
            now += change
            peak = max(peak, now)
        return Observed(outcome, peak, seconds)

    def counted(self, step: Callable[[], Outcome]) -> int:
        """The FLOPs of a step as PyTorch counts them, which takes memory; after one to warm up."""
        torch.manual_seed(0)
        step()
        with flop_counter() as counter:
            step()
        return counter.get_total_flops()

    def measure(self, case: Case) -> list[Row]:
        """Compare the sides of a case, then time them in turns."""
        sides = [case.plain, *case.rivals, *case.ours] if case.plain else list(case.ours)
        if case.plain and self.device.type == "cuda":
            case.plain.step()
        # What the plain way cannot do takes long in ours too: it is done once.
        counted = {side: self.counted(side.step) for side in case.ours if case.plain}
        seen = [self.observed(side.step) for side in sides]
        # In a step that long, being observed takes no time to speak of: it is timed by that alone.
        times = [[one.seconds] if one.seconds > self.seconds else [] for one in seen]
        short = [number for number, spent in enumerate(times) if not spent]
        ceilings: list[float] = []
        begun = time.perf_counter()
        while len(ceilings) < self.rounds and (
            not ceilings or time.perf_counter() - begun < self.seconds
        ):
            ceilings.append(self.ceiling())
            for number in short:
                repeats = OURS_PER_ROUND if number and seen[number].seconds < LONG else 1
                for _ in range(repeats):
                    torch.manual_seed(0)
                    times[number].append(self.seconds_of(sides[number].step))
        ceiling = statistics.median(ceilings)
        medians = [statistics.median(spent) for spent in times]
        rows = []
        first = seen[0]
        for side, one, seconds in zip(sides, seen, medians, strict=True):
            against_plain: dict[str, float | None] = {}
            if one is not first:
                against_plain = {
                    "faster": medians[0] / seconds,
                    "leaner": first.memory / one.memory,
                    "feature_error": _error([one.outcome.features], [first.outcome.features]),
                    "gradient_error": _error(one.outcome.gradients, first.outcome.gradients),
                }
            rows.append(
                Row(
                    case.name,
                    side.name,
                    side.cost.text_tokens,
                    side.cost.flops,
                    seconds,
                    one.memory,
                    side.cost.flops / seconds / ceiling,
                    self.dtype == torch.float32,
                    counted.get(side, 0),
                    **against_plain,
                )
            )
        return rows

    def machine(self) -> dict[str, str | int]:
        """What was measured on."""
        return {
            "processor": _processor(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if self.device.type == "cuda" else "",
            "torch": torch.__version__,
            "dtype": next(name for name, dtype in DTYPES.items() if dtype == self.dtype),
        }


def _frozen(left: Tensor, right: Tensor) -> Tensor:
    return frozen_linear(left, right, None)


def _linear_flops(x: Sequence[int], weight: Sequence[int], *rest: object, **named: object) -> int:
    return 2 * math.prod(x) * weight[0]


def flop_counter() -> FlopCounterMode:
    """PyTorch's, which of itself counts no FLOPs of the operator that ``frozen_linear`` calls."""
    mapping = {torch.ops.mkldnn._linear_pointwise: _linear_flops}
    return FlopCounterMode(display=False, custom_mapping=mapping)


def _error(got: Sequence[Tensor], want: Sequence[Tensor]) -> float | None:
    """The relative error of all tensors together; NaN where one has it, None of no tensors."""
    if not want:
        return None
    one, other = (torch.cat([x.flatten().float() for x in tensors]) for tensors in (got, want))
    return float((one - other).norm() / other.norm())


def _processor() -> str:
    try:
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def require_in_use(stand_ins: Iterable[FastForward]) -> None:
    """End the benchmark where the fast branch has given way to the host's own forward."""
    for fast in stand_ins:
        if not fast.in_use:
            raise SystemExit(f"the fast branch is not in use: its error is {fast.error}")

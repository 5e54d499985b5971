"""Measure the steps of a benchmark.

A case is one step of work, done in the plain way and in ours on the same weights and inputs. The
results of both are compared. Then both are timed in turns (plain, ours, plain, ours, …), so other
load on the machine affects both. A matrix product is timed in between; it gives the machine's
ceiling at that time. On the CPU the comparison also warms up the plain side.

Memory is the peak of the tensors' memory during a step, minus the memory before the step. On CUDA
it is ``torch.cuda.max_memory_allocated``. On the CPU it is computed from the allocations and
releases in the record of PyTorch's profiler; this step is not timed unless it is very long. Not
included are weights, the Python process, and the BLAS library's own memory.
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
from benchmarks.cost import Cost, Sizes

CUT = "cut at EOT"
"""The honest rival: the plain way, cut after the longest prompt; frozen prompts encoded once."""
TOLERANCE = 1e-5
"""Largest allowed relative error of features and gradients in fp32."""
EXCESS = 1.25
"""Our side may compute this many times the FLOPs of the cost model."""
OURS_PER_ROUND = 3
"""Timed steps of our side for each plain step, because one short step alone is noisy."""
LONG = 2.0
"""A step of this many seconds is not short."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CPU = torch.device("cpu")

# Otherwise the profiler reports each start and stop on stderr.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")


class Outcome(NamedTuple):
    """The result of a step: features or logits, and the gradients of the learned parameters.

    Each call of a step does the same work from the same state.
    """

    features: Tensor
    gradients: Sequence[Tensor] = ()


class Observed(NamedTuple):
    """A step under observation: its result, its peak memory in bytes, its time."""

    outcome: Outcome
    memory: int
    seconds: float


class Side(NamedTuple):
    """One way of doing a step."""

    name: str
    step: Callable[[], Outcome]
    cost: Cost


class Case(NamedTuple):
    """A step to measure: in the plain way (None if it cannot be run), in ours, by rivals."""

    name: str
    plain: Side | None
    ours: Sequence[Side]
    rivals: Sequence[Side] = ()


@dataclass(frozen=True)
class Row:
    """The measurements of one side of a case; times in seconds, memory in bytes.

    Values relative to the plain side are None for the plain side.
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
        """Whether the FLOPs fit the cost model and, in fp32, the results the plain side's."""
        errors = [e for e in (self.feature_error, self.gradient_error) if e is not None]
        agrees = not self.exact or all(error <= TOLERANCE for error in errors)
        return agrees and self.counted_flops <= EXCESS * self.flops


@dataclass(frozen=True)
class Bench:
    """The settings of a measurement.

    Attributes:
        sizes: the sizes of the CLIP.
        device: the device of all sides.
        dtype: the precision of the weights that CLIP's own ``convert_weights`` converts.
        rounds: maximum number of timing rounds.
        seconds: no new round of a case starts after this time; a longer step is timed only once.
        classes: numbers of classes to measure; empty for the benchmark's own numbers.
    """

    sizes: Sizes
    device: torch.device = CPU
    dtype: torch.dtype = torch.float32
    rounds: int = 5
    seconds: float = 8
    classes: tuple[int, ...] = ()

    def clip(self) -> CLIP:
        """Return a frozen CLIP on the CPU, with the same random weights at each call."""
        torch.manual_seed(0)
        clip = CLIP(*astuple(self.sizes)).eval().requires_grad_(False)
        if self.dtype != torch.float32:
            convert_weights(clip)
            for parameter in clip.parameters():
                if parameter.dtype == torch.float16:
                    parameter.data = parameter.data.to(self.dtype)
        return clip

    def random(self, *shape: int) -> Tensor:
        """Return standard normal numbers, the same at each call."""
        numbers = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
        return numbers.to(self.device, self.dtype)

    def seconds_of(self, work: Callable[[], object]) -> float:
        """Return the time of ``work``, in seconds."""
        self._wait()
        begun = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - begun

    def medians(self, *works: Callable[[], object]) -> list[float]:
        """Return the median time of each work; they are timed in turns, ``rounds`` times."""
        rounds = [[self.seconds_of(work) for work in works] for _ in range(self.rounds)]
        return [statistics.median(times) for times in zip(*rounds, strict=True)]

    def _wait(self) -> None:
        """Wait until a GPU has done all its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def ceiling(self) -> float:
        """Return the FLOPs per second of the machine's matrix product.

        It is the best of two shapes (an MLP's, a square), with PyTorch's BLAS and with
        ``frozen_linear``.
        """
        large = self.device.type == "cuda"
        rows, side, width = (16384, 8192, 512) if large else (2048, 2048, 512)
        best = 0.0
        for n, k, m in ((rows, width, 4 * width), (side, side, side)):
            left = torch.randn(n, k, device=self.device, dtype=self.dtype)
            right = torch.randn(m, k, device=self.device, dtype=self.dtype)
            for product in (
                partial(torch.mm, left, right.t()),
                partial(frozen_linear, left, right, None),
            ):
                seconds = [self.seconds_of(product) for _ in range(3)]
                best = max(best, 2 * n * k * m / min(seconds))
        return best

    def observed(self, step: Callable[[], Outcome]) -> Observed:
        """Do a step and return its result, memory and time."""
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
        """Return the FLOPs of a step as counted by PyTorch, which takes memory."""
        torch.manual_seed(0)
        step()  # to warm up
        with flop_counter() as counter:
            step()
        return counter.get_total_flops()

    def measure(self, case: Case) -> list[Row]:
        """Compare the sides of a case, then time them in turns."""
        sides = [case.plain, *case.rivals, *case.ours] if case.plain else list(case.ours)
        if case.plain and self.device.type == "cuda":
            case.plain.step()  # to warm up
        # Without a plain side the step is very long, so its FLOPs are not counted.
        counted = {side: self.counted(side.step) for side in case.ours if case.plain}
        observed = [self.observed(side.step) for side in sides]
        medians, ceiling = self._timed(sides, observed)
        first = observed[0]
        rows = []
        for side, one, seconds in zip(sides, observed, medians, strict=True):
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
                    case=case.name,
                    side=side.name,
                    text_tokens=side.cost.text_tokens,
                    flops=side.cost.flops,
                    seconds=seconds,
                    memory=one.memory,
                    of_ceiling=side.cost.flops / seconds / ceiling,
                    exact=self.dtype == torch.float32,
                    counted_flops=counted.get(side, 0),
                    **against_plain,
                )
            )
        return rows

    def _timed(
        self, sides: Sequence[Side], observed: Sequence[Observed]
    ) -> tuple[list[float], float]:
        """Time the sides in turns; return their median times and the median ceiling."""
        # In a step this long, observation takes almost no time: the observed time is enough.
        times = [[one.seconds] if one.seconds > self.seconds else [] for one in observed]
        short = [number for number, known in enumerate(times) if not known]
        ceilings: list[float] = []
        begun = time.perf_counter()
        while len(ceilings) < self.rounds and (
            not ceilings or time.perf_counter() - begun < self.seconds
        ):
            ceilings.append(self.ceiling())
            for number in short:
                repeats = OURS_PER_ROUND if number and observed[number].seconds < LONG else 1
                for _ in range(repeats):
                    torch.manual_seed(0)
                    times[number].append(self.seconds_of(sides[number].step))
        return [statistics.median(each) for each in times], statistics.median(ceilings)

    def machine(self) -> dict[str, str | int]:
        """Return the names of processor, GPU, PyTorch's version and precision."""
        return {
            "processor": _processor(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if self.device.type == "cuda" else "",
            "torch": torch.__version__,
            "dtype": next(name for name, dtype in DTYPES.items() if dtype == self.dtype),
        }


def _linear_flops(x: Sequence[int], weight: Sequence[int], *rest: object, **named: object) -> int:
    return 2 * math.prod(x) * weight[0]


def flop_counter() -> FlopCounterMode:
    """Return PyTorch's counter; it also counts the operator that ``frozen_linear`` calls."""
    mapping = {torch.ops.mkldnn._linear_pointwise: _linear_flops}
    return FlopCounterMode(display=False, custom_mapping=mapping)


def _error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float | None:
    """Return the relative error of all tensors together: NaN if a tensor has NaN, None of none."""
    if not expected:
        return None
    ours, plain = (torch.cat([x.flatten().float() for x in each]) for each in (found, expected))
    return float((ours - plain).norm() / plain.norm())


def _processor() -> str:
    try:
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def require_in_use(forwards: Iterable[FastForward]) -> None:
    """End the benchmark if the host's own forward has replaced the fast branch.

    Raises:
        SystemExit: the fast branch is not in use.
    """
    for fast in forwards:
        if not fast.in_use:
            raise SystemExit(f"the fast branch is not in use: its error is {fast.error}")

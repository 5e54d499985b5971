"""Where a step of stage 1 spends its time, and what of it no code of ours could save.

The step of ``stage1.py``, ours. Its matrix products are recorded and done again alone, in the same
order and with the same weights, which no cache holds: that is the floor of a step in this PyTorch.
The rest of the step is split by what its operators do, as PyTorch's profiler tells; what is left
over is Python, autograd and the dispatching of some thousand operators.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from anchoropt_plugin.encoders import frozen_linear as linear
from benchmarks.harness import VIT_B16, Bench, Sizes
from benchmarks.stage1 import stage_one

ROUNDS = 15
PRODUCTS = "matrix products"
KINDS = {
    "linear_pointwise": PRODUCTS,
    "mm": PRODUCTS,
    "attention": "attention",
    "layer_norm": "layer norms",
    "silu": "GELU",
}
"""What an operator does, by a part of its name."""


def main(arguments: Sequence[str] | None = None, sizes: Sizes = VIT_B16) -> int:
    """Print the parts of a step, in milliseconds and per cent; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args(arguments)
    bench = Bench(sizes, torch.device("cpu"), torch.float32, ROUNDS, 0, ())
    side = stage_one(bench, 50).ours[0]
    products = recorded(side.step)
    if not products:
        raise SystemExit("this build of PyTorch has no oneDNN, through which they are recorded")

    def again() -> None:
        for x, weight, bias in products:
            linear._product(x, weight, bias)

    pairs = [(bench.seconds_of(side.step), bench.seconds_of(again)) for _ in range(ROUNDS)]
    step, floor = (statistics.median(times) for times in zip(*pairs, strict=True))
    ceiling = side.cost.flops / bench.ceiling()
    print(f"{'a step':<34}{step * 1e3:6.0f} ms")
    print(f"{'its matrix products alone':<34}{floor * 1e3:6.0f} ms {floor / step:5.0%}")
    print(f"{'the same at the ceiling':<34}{ceiling * 1e3:6.0f} ms {ceiling / step:5.0%}")
    print("in the profiler:")
    for kind, share in shares(side.step).most_common():
        print(f"  {kind:<40}  {share:5.0%}")
    return 0


def recorded(step: Callable[[], object]) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    """What each linear map of a step was given: input, weight, bias."""
    given = []
    product = linear._product

    def record(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        given.append((torch.randn_like(x), weight, bias))
        return product(x, weight, bias)

    step()
    with mock.patch.object(linear, "_product", record):
        step()
    return given


def shares(step: Callable[[], object]) -> Counter[str]:
    """The share of each kind of operator in the time of a few steps."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(5):
            step()
    spent: Counter[str] = Counter()
    for event in profiler.key_averages():
        kind = next((kind for part, kind in KINDS.items() if part in event.key), "other operators")
        spent[kind] += event.self_cpu_time_total
    total = sum(spent.values())
    return Counter({kind: time / total for kind, time in spent.items()})


if __name__ == "__main__":
    sys.exit(main())

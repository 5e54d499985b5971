"""Where a step of stage 1 spends its time, and the floor: its matrix products alone.

The step is our side of ``stage1.py``. Its matrix products are recorded and repeated alone, in the
same order and with the same weights, which are in no cache. No code of ours can be faster than this
floor with this PyTorch. PyTorch's profiler splits the time of the whole step by kinds of operators.
"""

from __future__ import annotations

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
from anchoropt_plugin.errors import UserError
from anchoropt_plugin.process.command_line import status_of
from benchmarks.command import parser_of
from benchmarks.cost import VIT_B16, Sizes
from benchmarks.harness import Bench
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
"""The kind of an operator, by a part of its name."""


def main(arguments: Sequence[str] | None = None, sizes: Sizes = VIT_B16) -> int:
    """Run the command line and return the exit status."""
    parser = parser_of(__doc__)
    return status_of(lambda: _report(parser.parse_args(arguments), sizes))


def _report(_: object, sizes: Sizes) -> None:
    """Print the parts of a step, in milliseconds and per cent."""
    bench = Bench(sizes, rounds=ROUNDS)
    side = stage_one(bench, 50).ours[0]
    products = recorded(side.step)
    if not products:
        raise UserError("this build of PyTorch has no oneDNN, so no product can be recorded")

    def repeat() -> None:
        for x, weight, bias in products:
            linear._product(x, weight, bias)

    step, floor = bench.medians(side.step, repeat)
    ceiling = side.cost.flops / bench.ceiling()
    print(f"{'a step':<34}{step * 1e3:6.0f} ms")
    print(f"{'its matrix products alone':<34}{floor * 1e3:6.0f} ms {floor / step:5.0%}")
    print(f"{'the same at the ceiling':<34}{ceiling * 1e3:6.0f} ms {ceiling / step:5.0%}")
    print("in the profiler:")
    for kind, share in shares(side.step).most_common():
        print(f"  {kind:<40}  {share:5.0%}")


def recorded(step: Callable[[], object]) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    """Return the inputs of each linear map of a step: input, weight, bias."""
    inputs = []
    product = linear._product

    def record(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        inputs.append((torch.randn_like(x), weight, bias))
        return product(x, weight, bias)

    step()
    with mock.patch.object(linear, "_product", record):
        step()
    return inputs


def shares(step: Callable[[], object]) -> Counter[str]:
    """Return the share of each kind of operator in the time of five steps."""
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

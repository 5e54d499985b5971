"""A frozen linear map, forward and backward to its input: PyTorch's BLAS and ``frozen_linear``.

The map is the first one of an MLP in ViT-B/16's text tower, 512 to 2048, in fp32 on the CPU. The
numbers are medians.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from anchoropt_plugin.encoders.frozen_linear import frozen_linear
from benchmarks.command import parser_of
from benchmarks.cost import VIT_B16
from benchmarks.harness import Bench

TOKENS = (256, 1006, 2506)
ROUNDS = 15


def main() -> int:
    """Print GFLOP/s of both and the ratio, for the tokens of 50, 200 and 500 classes."""
    parser_of(__doc__).parse_args()
    bench = Bench(VIT_B16, rounds=ROUNDS)
    weight, bias = torch.randn(2048, 512), torch.randn(2048)

    def step(linear: Callable[..., Tensor], x: Tensor, upstream: Tensor) -> None:
        torch.autograd.grad(linear(x, weight, bias), x, upstream)

    for tokens in TOKENS:
        tensors = torch.randn(tokens, 512, requires_grad=True), torch.randn(tokens, 2048)
        blas, ours = bench.medians(
            partial(step, F.linear, *tensors), partial(step, frozen_linear, *tensors)
        )
        flops = 4 * tokens * weight.numel()
        print(
            f"{tokens:>5} tokens: BLAS {flops / blas / 1e9:4.0f} GFLOP/s, frozen_linear "
            f"{flops / ours / 1e9:4.0f} GFLOP/s, {blas / ours:.1f} times"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())

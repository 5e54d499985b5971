"""The text branch, forward, and backward to the context.

All classes share the context: four soft tokens and an anchor. The plain side is the text encoder
as in public code, with 77 tokens for each class. Our side is the same encoder after ``accelerate``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from anchoropt_plugin import accelerate
from benchmarks import command
from benchmarks.cost import cut_text, fast_text, plain_text
from benchmarks.harness import Bench, Case, Outcome, Side, require_in_use
from benchmarks.plain import (
    CutTextEncoder,
    PlainPrompts,
    PlainTextEncoder,
    class_names,
    cut_rivals,
)

N_CTX = 5


def cases(bench: Bench) -> Iterator[Case]:
    """Yield a case for each number of classes."""
    for n_classes in bench.classes or (50, 200, 500):
        yield text_branch(bench, n_classes)


def text_branch(bench: Bench, n_classes: int, chunk: int = 0) -> Case:
    """Return the case of ``n_classes``; our side encodes ``chunk`` classes at once (0: all)."""
    sizes, clip = bench.sizes, bench.clip()
    prompts = PlainPrompts(clip, class_names(n_classes), N_CTX, bench.device)
    clip.to(bench.device)
    context = (0.02 * bench.random(N_CTX, sizes.width)).requires_grad_()
    upstream = bench.random(n_classes, sizes.embed_dim)
    plain_encoder, fast_encoder = PlainTextEncoder(clip), PlainTextEncoder(clip)
    fast_forwards = accelerate(fast_encoder)
    for fast in fast_forwards:
        fast.chunk = chunk

    def step(encoder: Callable[[Tensor, Tensor], Tensor]) -> Outcome:
        features = encoder(prompts(context), prompts.tokens)
        (gradient,) = torch.autograd.grad(features, context, upstream)
        return Outcome(features.detach(), [gradient])

    def ours() -> Outcome:
        outcome = step(fast_encoder)
        require_in_use(fast_forwards)
        return outcome

    cost = fast_text(sizes, prompts.eot, 1 + N_CTX)
    if chunk:  # the backward pass repeats the forward pass
        again = fast_text(sizes, prompts.eot, 1 + N_CTX, backward=False)
        cost = cost._replace(flops=cost.flops + again.flops)

    return Case(
        f"{n_classes} classes",
        Side("plain", partial(step, plain_encoder), plain_text(sizes, n_classes)),
        [Side("ours", ours, cost)],
        cut_rivals(partial(CutTextEncoder, clip), step, cut_text(sizes, prompts.eot), bench.device),
    )


main = partial(command.main, "Text branch, forward and backward", __doc__, cases)

if __name__ == "__main__":
    sys.exit(main())

"""The text branch, forward and backward down to the context: 77 tokens a class, or the fast one.

The context is four soft tokens and an anchor, shared by the classes. The plain side is the text
encoder as public code has it; ours is the same encoder after ``accelerate``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from anchoropt_plugin import accelerate
from anchoropt_plugin.encoders.clip_models import CLIP
from benchmarks import command, harness
from benchmarks.harness import (
    VIT_B16,
    Bench,
    Case,
    CutTextEncoder,
    Outcome,
    PlainTextEncoder,
    Side,
    Sizes,
)
from trainers.prompted_clip import embed_prompts

N_CTX = 5


def cases(bench: Bench) -> Iterator[Case]:
    """One for each number of classes."""
    clip = bench.clip()
    for n_classes in bench.classes or (50, 200, 500):
        yield text_branch(bench, clip, n_classes)


def text_branch(bench: Bench, clip: CLIP, n_classes: int, chunk: int = 0) -> Case:
    """Both encoders on the same prompts; ours takes ``chunk`` classes at once, or all."""
    clip.cpu()
    tokens, frame = embed_prompts(clip, harness.class_names(n_classes), " ".join(["X"] * N_CTX))
    eot = tokens.argmax(-1).tolist()
    clip.to(bench.device)
    frame = frame.to(bench.device)  # the tokens stay on the CPU, as with public hosts
    context = (0.02 * bench.random(N_CTX, bench.sizes.width)).requires_grad_()
    upstream = bench.random(n_classes, bench.sizes.embed_dim)
    plain_encoder, fast_encoder = PlainTextEncoder(clip), PlainTextEncoder(clip)
    cut_encoder = CutTextEncoder(clip)
    stand_ins = accelerate(fast_encoder)
    for stand_in in stand_ins:
        stand_in.chunk = chunk

    def step(encoder: Callable[[Tensor, Tensor], Tensor]) -> Outcome:
        contexts = context.expand(n_classes, -1, -1)
        prompts = torch.cat([frame[:, :1], contexts, frame[:, 1 + N_CTX :]], 1)
        features = encoder(prompts, tokens)
        (gradient,) = torch.autograd.grad(features, context, upstream)
        return Outcome(features.detach(), [gradient])

    def ours() -> Outcome:
        outcome = step(fast_encoder)
        harness.require_in_use(stand_ins)
        return outcome

    cost = harness.fast_text(bench.sizes, eot, 1 + N_CTX)
    if chunk:  # the backward pass computes the forward pass again
        again = harness.fast_text(bench.sizes, eot, 1 + N_CTX, backward=False)
        cost = cost._replace(flops=cost.flops + again.flops)
    return Case(
        f"{n_classes} classes",
        Side("plain", lambda: step(plain_encoder), harness.plain_text(bench.sizes, n_classes)),
        [Side("ours", ours, cost)],
        [Side(harness.CUT, lambda: step(cut_encoder), harness.cut_text(bench.sizes, eot))],
    )


def main(arguments: Sequence[str] | None = None, sizes: Sizes = VIT_B16) -> int:
    """The command line; returns the exit status."""
    return command.main("Text branch, forward and backward", __doc__, cases, arguments, sizes)


if __name__ == "__main__":
    sys.exit(main())

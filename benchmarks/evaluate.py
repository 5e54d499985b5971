"""One evaluation: encode the prompts and classify 10 batches of 100 image features.

The plain side encodes the prompts again for every batch, with 77 tokens for each class, as the
forward of public code does. Our side is the model of ``trainers/coop.py`` after ``accelerate``.
Image features are given: ``image_tower.py`` measures the image tower.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from anchoropt_plugin import accelerate
from benchmarks import command
from benchmarks.cost import cut_text, fast_text, plain_text
from benchmarks.harness import Bench, Case, Outcome, Side, require_in_use
from benchmarks.plain import (
    CutTextEncoder,
    PlainTextEncoder,
    class_names,
    cut_rivals,
    scaled_cosines,
)
from benchmarks.train_step import host_model

BATCHES, BATCH = 10, 100


def cases(bench: Bench) -> Iterator[Case]:
    """Yield a case for each number of classes."""
    for n_classes in bench.classes or (50,):
        yield evaluation(bench, n_classes)


def evaluation(bench: Bench, n_classes: int) -> Case:
    """Return the case of CoOp with ``n_classes``, in eval mode and without a graph."""
    clip = bench.clip()
    model = host_model("CoOp", class_names(n_classes), clip)
    model.image_encoder = nn.Identity()
    model.eval().to(bench.device)
    learner, tokens = model.prompt_learner, model.tokenized_prompts
    plain_encoder = PlainTextEncoder(clip)
    fast_forwards = accelerate(model)
    batches = bench.random(BATCHES, BATCH, bench.sizes.embed_dim)

    @torch.no_grad()
    def plain() -> Outcome:
        logits = [scaled_cosines(clip, x, plain_encoder(learner(), tokens)) for x in batches]
        return Outcome(torch.cat(logits))

    @torch.no_grad()
    def encode_once(encoder: CutTextEncoder) -> Outcome:
        text = encoder(learner(), tokens)
        return Outcome(torch.cat([scaled_cosines(clip, x, text) for x in batches]))

    @torch.no_grad()
    def ours() -> Outcome:
        for fast in fast_forwards:
            fast.forget()  # the text features of the last evaluation
        logits = torch.cat([model(x) for x in batches])
        require_in_use(fast_forwards)
        return Outcome(logits)

    sizes, eot = bench.sizes, tokens.argmax(-1).tolist()
    plain_cost = plain_text(sizes, n_classes, backward=False).times(BATCHES)
    cut_cost = cut_text(sizes, eot, backward=False)
    fast_cost = fast_text(sizes, eot, 1 + len(learner.ctx), backward=False)
    return Case(
        f"{n_classes} classes, {BATCHES} batches of {BATCH}",
        Side("plain", plain, plain_cost),
        [Side("ours", ours, fast_cost)],
        cut_rivals(partial(CutTextEncoder, clip), encode_once, cut_cost, bench.device),
    )


main = partial(command.main, "Evaluation, without the image tower", __doc__, cases)

if __name__ == "__main__":
    sys.exit(main())

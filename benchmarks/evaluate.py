"""An evaluation: prompts are encoded and 10 batches of 100 test features classified.

The plain side encodes the prompts anew, with 77 tokens a class, at every batch, as public code
does in its forward; ours is the model of ``trainers/coop.py`` after ``accelerate``. Both are given
the images' features: what the image tower costs is measured alone, in ``image_tower.py``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from anchoropt_plugin import accelerate
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
from benchmarks.train_step import host_model

BATCHES, BATCH = 10, 100


def cases(bench: Bench) -> Iterator[Case]:
    """One for each number of classes."""
    for n_classes in bench.classes or (50,):
        yield evaluation(bench, n_classes)


def evaluation(bench: Bench, n_classes: int) -> Case:
    """CoOp with ``n_classes``, in eval mode and without a graph."""
    sizes = bench.sizes
    clip = bench.clip()
    model = host_model("CoOp", harness.class_names(n_classes), clip)
    model.image_encoder = nn.Identity()
    model.eval().to(bench.device)
    learner = model.prompt_learner
    encoder, cut_encoder = PlainTextEncoder(clip), CutTextEncoder(clip)
    stand_ins = accelerate(model)
    batches = bench.random(BATCHES, BATCH, sizes.embed_dim)

    def logits_of(features: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        features = features / features.norm(dim=-1, keepdim=True)
        text = text / text.norm(dim=-1, keepdim=True)
        return clip.logit_scale.exp() * features @ text.t()

    @torch.no_grad()
    def plain() -> Outcome:
        parts = []
        for batch in batches:
            text = encoder(learner(), learner.tokenized_prompts)
            parts.append(logits_of(batch, text))
        return Outcome(torch.cat(parts))

    @torch.no_grad()
    def cut() -> Outcome:
        text = cut_encoder(learner(), learner.tokenized_prompts)
        return Outcome(torch.cat([logits_of(batch, text) for batch in batches]))

    @torch.no_grad()
    def ours() -> Outcome:
        for stand_in in stand_ins:
            stand_in.forget()  # what the evaluation before has left
        logits = torch.cat([model(batch) for batch in batches])
        harness.require_in_use(stand_ins)
        return Outcome(logits)

    eot = learner.tokenized_prompts.argmax(-1).tolist()
    n_shared = 1 + len(learner.ctx)
    return Case(
        f"{n_classes} classes, {BATCHES} batches of {BATCH}",
        Side("plain", plain, harness.plain_text(sizes, n_classes, backward=False).times(BATCHES)),
        [Side("ours", ours, harness.fast_text(sizes, eot, n_shared, False))],
        [Side(harness.CUT, cut, harness.cut_text(sizes, eot, backward=False))],
    )


def main(arguments: Sequence[str] | None = None, sizes: Sizes = VIT_B16) -> int:
    """The command line; returns the exit status."""
    return command.main("Evaluation, without the image tower", __doc__, cases, arguments, sizes)


if __name__ == "__main__":
    sys.exit(main())

"""One step of stage 1: image tower, 77 tokens and repeated targets, or the fast branch alone.

The plain side is what the released code does: it encodes a batch of images and throws the result
away, runs all 77 tokens of ``[A] of {class}.``, and repeats each class's feature for each of its
descriptions. Ours is a step of the loop of ``AnchorTokens.learn``: one target a class, no images.
Both losses differ by a constant, and the gradient of the anchor is the same.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from anchoropt_plugin.encoders.text_tower import TextTower
from anchoropt_plugin.method.anchors import (
    INIT_STD,
    MOMENTUM,
    WEIGHT_DECAY,
    AnchorPrompts,
    StageOne,
)
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

BATCH = 32
DESCRIPTIONS = 10


def cases(bench: Bench) -> Iterator[Case]:
    """One for each number of classes."""
    for n_classes in bench.classes or (50,):
        yield stage_one(bench, n_classes)


def stage_one(bench: Bench, n_classes: int) -> Case:
    """A step on ``n_classes`` with random vectors for the features of their descriptions."""
    sizes, settings = bench.sizes, StageOne()
    clip = bench.clip()
    names = harness.class_names(n_classes)
    tokens, frame = embed_prompts(clip, [f"of {name}" for name in names], "X")
    clip.to(bench.device)
    frame = frame.to(bench.device)  # the tokens stay on the CPU, as with public hosts
    images = bench.random(BATCH, 3, sizes.resolution, sizes.resolution)
    shape = (n_classes, DESCRIPTIONS, sizes.embed_dim)
    descriptions = F.normalize(bench.random(*shape).float(), dim=-1)
    targets = descriptions.mean(1)
    start = INIT_STD * bench.random(settings.length, sizes.width).float()
    anchors = start.clone().requires_grad_()
    optimizer = torch.optim.SGD(
        [anchors], settings.lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
    )
    plain_encoder, cut_encoder = PlainTextEncoder(clip), CutTextEncoder(clip)
    prompts = AnchorPrompts(TextTower(clip), names, 1)
    # As ``learn`` scales it, so that half precision keeps the gradient.
    scale = targets.numel() / settings.mse_weight

    def update(features: Tensor, loss: Tensor) -> Outcome:
        optimizer.zero_grad()
        (loss * scale).backward()
        anchors.grad /= scale
        gradient = anchors.grad.clone()
        optimizer.step()
        with torch.no_grad():
            anchors.copy_(start)
        return Outcome(features.detach(), [gradient])

    def encoded(encoder: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        context = anchors.to(frame.dtype).expand(n_classes, -1, -1)
        prompt = torch.cat([frame[:, :1], context, frame[:, 2:]], 1)
        return F.normalize(encoder(prompt, tokens).float(), dim=-1)

    def plain() -> Outcome:
        clip.visual(images)
        features = encoded(plain_encoder)
        repeated = features.repeat_interleave(DESCRIPTIONS, 0)
        return update(
            features, settings.mse_weight * F.mse_loss(repeated, descriptions.flatten(0, 1))
        )

    def to_the_means(features: Tensor) -> Outcome:
        return update(features, settings.mse_weight * (features - targets).square().mean())

    image_cost = harness.image_tower(sizes, BATCH)
    return Case(
        f"{n_classes} classes, batch {BATCH}",
        Side("plain", plain, harness.plain_text(sizes, n_classes).plus(image_cost)),
        [
            Side(
                "ours",
                lambda: to_the_means(prompts.encode(anchors)),
                harness.fast_text(sizes, prompts.eot, prompts.n_shared),
            )
        ],
        [
            Side(
                harness.CUT,
                lambda: to_the_means(encoded(cut_encoder)),
                harness.cut_text(sizes, prompts.eot),
            )
        ],
    )


def main(arguments: Sequence[str] | None = None, sizes: Sizes = VIT_B16) -> int:
    """The command line; returns the exit status."""
    return command.main("Stage 1, one step", __doc__, cases, arguments, sizes)


if __name__ == "__main__":
    sys.exit(main())

"""One step of stage 1.

The plain side does what the released code does: it encodes a batch of images and discards the
result, computes all 77 tokens of ``[A] of {class}.``, and repeats the feature of a class for each
of its descriptions. Our side is a step of ``AnchorTokens.learn``: one target for each class, no
images. The two losses differ by a constant; the gradient of the anchor is the same.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from anchoropt_plugin.encoders.text_tower import TextTower
from anchoropt_plugin.method.anchor_learning import INIT_STD, MOMENTUM, WEIGHT_DECAY, StageOne
from anchoropt_plugin.method.anchor_prompts import AnchorPrompts
from benchmarks import command
from benchmarks.cost import cut_text, fast_text, image_tower, plain_text
from benchmarks.harness import Bench, Case, Outcome, Side
from benchmarks.plain import (
    CutTextEncoder,
    PlainPrompts,
    PlainTextEncoder,
    class_names,
    cut_rivals,
)

BATCH = 32
DESCRIPTIONS = 10


def cases(bench: Bench) -> Iterator[Case]:
    """Yield a case for each number of classes."""
    for n_classes in bench.classes or (50,):
        yield stage_one(bench, n_classes)


def stage_one(bench: Bench, n_classes: int) -> Case:
    """Return the case of ``n_classes``; random vectors stand for the features of descriptions."""
    sizes, settings, clip = bench.sizes, StageOne(), bench.clip()
    names = class_names(n_classes)
    plain_prompts = PlainPrompts(clip, [f"of {name}" for name in names], 1, bench.device)
    clip.to(bench.device)
    plain_encoder = PlainTextEncoder(clip)
    prompts = AnchorPrompts(TextTower(clip), names, 1)
    images = bench.random(BATCH, 3, sizes.resolution, sizes.resolution)
    random_vectors = bench.random(n_classes, DESCRIPTIONS, sizes.embed_dim).float()
    descriptions = F.normalize(random_vectors, dim=-1)
    targets = descriptions.mean(1)
    start = INIT_STD * bench.random(settings.length, sizes.width).float()
    anchors = start.clone().requires_grad_()
    optimizer = torch.optim.SGD(
        [anchors], settings.lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
    )
    # ``learn`` scales the loss in the same way, so half precision does not lose the gradient.
    scale = targets.numel() / settings.mse_weight

    def update(features: Tensor, error: Tensor) -> Outcome:
        optimizer.zero_grad()
        (settings.mse_weight * error * scale).backward()
        anchors.grad /= scale
        gradient = anchors.grad.clone()
        optimizer.step()
        with torch.no_grad():
            anchors.copy_(start)
        return Outcome(features.detach(), [gradient])

    def encode(encoder: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        features = encoder(plain_prompts(anchors), plain_prompts.tokens)
        return F.normalize(features.float(), dim=-1)

    def plain() -> Outcome:
        clip.visual(images)
        features = encode(plain_encoder)
        repeated = features.repeat_interleave(DESCRIPTIONS, 0)
        return update(features, F.mse_loss(repeated, descriptions.flatten(0, 1)))

    def to_targets(features: Tensor) -> Outcome:
        return update(features, F.mse_loss(features, targets))

    def cut(encoder: CutTextEncoder) -> Outcome:
        return to_targets(encode(encoder))

    plain_cost = plain_text(sizes, n_classes).plus(image_tower(sizes, BATCH))
    fast_cost = fast_text(sizes, prompts.eot, prompts.n_shared)
    return Case(
        f"{n_classes} classes, batch {BATCH}",
        Side("plain", plain, plain_cost),
        [Side("ours", lambda: to_targets(prompts.encode(anchors)), fast_cost)],
        cut_rivals(partial(CutTextEncoder, clip), cut, cut_text(sizes, prompts.eot), bench.device),
    )


main = partial(command.main, "Stage 1, one step", __doc__, cases)

if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python
"""Train the text encoder of the embedded tiny CLIP further, until it listens to the context.

For the embedded tiny CLIP, all captions of the same thing are positives of an image, so that words
around a class name hardly change its features. Here half of the loss is CLIP's own: the only
positive of an image is its own caption. And captions tell style, size and background more often.
The image encoder stays as it is, except for its projection. docs/tiny_clip.md has the results.

    python scripts/listening_tiny_clip.py --output listening.pt
    python scripts/compare.py --hosts CoOp --datasets shapes --config tiny \
        MODEL.BACKBONE.NAME listening.pt OPTIM.MAX_EPOCH 20
"""

from __future__ import annotations

import argparse
import math
import random
import time
from pathlib import Path
from typing import Any

import torch
from pretrain_tiny_clip import (
    CONSOLE,
    NORMALISE,
    ROOT,
    learning_rate,
    measure,
    new_clip,
    optimizer_for,
    save,
    show,
)
from rich.progress import Progress
from torch import Tensor, nn

from anchoropt_plugin.datasets.synthetic import Scenes, caption
from anchoropt_plugin.datasets.synthetic.images import training_images
from anchoropt_plugin.datasets.synthetic.pretraining import (
    contrastive_loss,
    text_features,
    with_unknown_tokens,
)
from anchoropt_plugin.encoders.clip_models import CLIP, load_clip, tokenize

RECIPE: dict[str, Any] = {
    "pool": 24_000,
    "batch": 128,
    "lr": 7e-4,
    "warmup_steps": 50,
    "weight_decay": 0.1,
    "texts_with_unknown_tokens": 0.15,
    "most_unknown_tokens": 16,
    "share_of_own_captions": 0.5,
}
EMBEDDED = ROOT / "anchoropt_plugin" / "assets" / "tiny_clip.pt"


@torch.no_grad()
def draw_pool(model: CLIP, generator: torch.Generator, progress: Progress) -> tuple[Tensor, Scenes]:
    """Return the image features (pool, width) before the projection, and the scenes."""
    projection, model.visual.proj = model.visual.proj, None
    features, scenes = [], []
    for _ in progress.track(range(RECIPE["pool"] // 500), description="drawing images"):
        drawn, shown = training_images(generator, 500)
        features.append(model.encode_image(NORMALISE(drawn)))
        scenes.append(shown)
    model.visual.proj = projection
    return torch.cat(features), Scenes.cat(scenes)


def train(seed: int, steps: int) -> dict[str, Any]:
    """Train the embedded model further, and return the content of the weights file."""
    content = torch.load(EMBEDDED, weights_only=True)
    ids = content["token_ids"].long()
    model = new_clip(len(ids))
    model.load_state_dict(content["state_dict"])
    model.visual.requires_grad_(False)
    model.visual.proj.requires_grad_(True)
    torch.manual_seed(seed)
    generator, rng = torch.Generator().manual_seed(seed), random.Random(seed)
    row_of = torch.full((int(ids.max()) + 1,), -1)
    row_of[ids] = torch.arange(len(ids))
    optimizer, own = optimizer_for(model, RECIPE), RECIPE["share_of_own_captions"]
    unknown = RECIPE["texts_with_unknown_tokens"], RECIPE["most_unknown_tokens"]
    each_its_own = torch.arange(RECIPE["batch"])
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with Progress(console=CONSOLE) as progress:
        pool, scenes = draw_pool(model, generator, progress)
        for step in progress.track(range(steps), description="training"):
            rows = torch.randint(0, len(pool), (RECIPE["batch"],), generator=generator)
            shown = scenes[rows]
            texts = [caption(rng, scene, is_detailed=True) for scene in shown.words()]
            tokens = with_unknown_tokens(generator, row_of[tokenize(texts)], *unknown)
            features = pool[rows] @ model.visual.proj, text_features(model, tokens)
            of_own = contrastive_loss(model, *features, each_its_own)
            of_kind = contrastive_loss(model, *features, shown.kind())
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, RECIPE)
            optimizer.zero_grad()
            (own * of_own + (1 - own) * of_kind).backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            with torch.no_grad():
                model.logit_scale.clamp_(max=math.log(100))
    state = {name: value.detach().half() for name, value in model.state_dict().items()}
    return {"state_dict": state, "token_ids": content["token_ids"]}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--output", type=Path, required=True, help="weights file to write")
    add("--seed", type=int, default=11, help="random seed (default: %(default)s)")
    add("--steps", type=int, default=3000, help="batches of 128 (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    start = time.monotonic()
    save(train(args.seed, args.steps), args.output)
    CONSOLE.print(f"{args.output}: {(time.monotonic() - start) / 60:.1f} min")
    show(measure(load_clip(str(args.output))))


if __name__ == "__main__":
    main()

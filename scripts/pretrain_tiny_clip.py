#!/usr/bin/env python
"""Pre-train the embedded tiny CLIP on synthetic images, or measure an existing one.

A CLIP of OpenAI's architecture learns from images and captions of ``datasets.synthetic``. It sees
no real image, and none of the 48 colour-fill-shape triples of the shapes data set. The file gets
the weights of the last step; no accuracy reported here is used for a choice.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import transforms
from torchvision.transforms import InterpolationMode

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from anchoropt_plugin.datasets.embedded import (
    DIGITS_SPLIT,
    SHAPES_SPLIT,
    write_digits,
    write_shapes,
)
from anchoropt_plugin.datasets.synthetic import BENCHMARK, DIGITS, Scenes, caption, vocabulary_text
from anchoropt_plugin.datasets.synthetic.images import benchmark_images, training_images
from anchoropt_plugin.datasets.synthetic.pretraining import (
    AttributeHead,
    contrastive_loss,
    text_features,
    with_unknown_tokens,
)
from anchoropt_plugin.encoders.clip_models import CLIP, load_clip, tokenize

RECIPE: dict[str, Any] = {
    "resolution": 32,
    "patch": 8,
    "vision_width": 128,
    "vision_layers": 4,
    "text_width": 128,
    "text_layers": 3,
    "embed_dim": 128,
    "pool": 64_000,
    "batch": 128,
    "lr": 1.5e-3,
    "warmup_steps": 100,
    "weight_decay": 0.1,
    "attributes_until": 0.7,
    "texts_with_unknown_tokens": 0.15,
    "most_unknown_tokens": 16,
}
NORMALISE = transforms.Normalize(
    (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
)
"""Normalise images (…, 3, height, width) in [0, 1] for CLIP."""
CONSOLE = Console()


def new_clip(n_tokens: int) -> CLIP:
    """Return an untrained CLIP of the recipe's sizes with a vocabulary of ``n_tokens`` tokens."""
    return CLIP(
        embed_dim=RECIPE["embed_dim"],
        image_resolution=RECIPE["resolution"],
        vision_layers=RECIPE["vision_layers"],
        vision_width=RECIPE["vision_width"],
        vision_patch_size=RECIPE["patch"],
        context_length=77,
        vocab_size=n_tokens,
        transformer_width=RECIPE["text_width"],
        transformer_heads=RECIPE["text_width"] // 64,
        transformer_layers=RECIPE["text_layers"],
    ).float()


def draw_pool(generator: torch.Generator, progress: Progress) -> tuple[Tensor, Scenes]:
    """Return all training images, (pool, 3, 32, 32) uint8, and their scenes."""
    images, scenes = [], []
    for _ in progress.track(range(RECIPE["pool"] // 500), description="drawing images"):
        drawn, shown = training_images(generator, 500)
        images.append((drawn * 255).round().byte())
        scenes.append(shown)
    return torch.cat(images), Scenes.cat(scenes)


def optimizer_for(
    model: CLIP, recipe: Mapping[str, Any], more: Iterable[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """Return AdamW with weight decay for matrices, but not for embeddings, gains and biases."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decayed = [p for name, p in named if p.ndim >= 2 and "embedding" not in name]
    others = [p for name, p in named if p.ndim < 2 or "embedding" in name]
    return torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": recipe["weight_decay"]},
            {"params": [*others, *more], "weight_decay": 0.0},
        ],
        lr=recipe["lr"],
        betas=(0.9, 0.98),
        eps=1e-6,
    )


def batches(generator: torch.Generator, n: int) -> Iterator[Tensor]:
    """Yield the row numbers of batches without end, in a new order for each pass over all rows."""
    whole = n - n % RECIPE["batch"]
    while True:
        yield from torch.randperm(n, generator=generator)[:whole].split(RECIPE["batch"])


def learning_rate(step: int, steps: int, recipe: Mapping[str, Any]) -> float:
    """Return the learning rate of a step: a linear warm-up, then half a cosine down to 2 %."""
    warmup = min(1.0, (step + 1) / recipe["warmup_steps"])
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return float(recipe["lr"] * warmup * (0.02 + 0.98 * cosine))


def pretrain(seed: int, steps: int) -> dict[str, Any]:
    """Train from scratch, and return the content of the weights file, in half precision."""
    torch.manual_seed(seed)
    generator, rng = torch.Generator().manual_seed(seed), random.Random(seed)
    ids = tokenize(vocabulary_text()).unique()  # sorted, with the token of padding
    model, head = new_clip(len(ids)), AttributeHead(RECIPE["embed_dim"])
    optimizer = optimizer_for(model, RECIPE, head.parameters())
    share, most = RECIPE["texts_with_unknown_tokens"], RECIPE["most_unknown_tokens"]
    row_of = torch.full((int(ids.max()) + 1,), -1)
    row_of[ids] = torch.arange(len(ids))  # same order, so the end token is still the largest

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=CONSOLE) as progress:
        images, scenes = draw_pool(generator, progress)
        task = progress.add_task("training", total=steps)
        for step, rows in zip(range(steps), batches(generator, len(images)), strict=False):
            shown = scenes[rows]
            tokens = row_of[tokenize([caption(rng, scene) for scene in shown.words()])]
            tokens = with_unknown_tokens(generator, tokens, share, most)
            image = model.encode_image(NORMALISE(images[rows].float() / 255))
            loss = contrastive_loss(model, image, text_features(model, tokens), shown.kind())
            fade = max(0.0, 1 - step / steps / RECIPE["attributes_until"])
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, RECIPE)
            optimizer.zero_grad()
            (loss + fade * head(image, shown)).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            with torch.no_grad():
                model.logit_scale.clamp_(max=math.log(100))
            progress.update(task, advance=1, description=f"training, loss {loss.item():5.2f}")
            if (step + 1) % 500 == 0:
                progress.console.print(f"step {step + 1}: loss {loss.item():.2f}")
    state = {name: value.detach().half() for name, value in model.state_dict().items()}
    return {"state_dict": state, "token_ids": ids.int()}


@torch.no_grad()
def accuracy(model: CLIP, images: Tensor, labels: Tensor, names: Sequence[str]) -> float:
    """Return the zero-shot accuracy in % of "a photo of a {}." on images (n, 3, 32, 32)."""
    prompts = tokenize([f"a photo of a {name}." for name in names])
    text = F.normalize(model.encode_text(prompts), dim=-1)
    image = torch.cat([F.normalize(model.encode_image(part), dim=-1) for part in images.split(500)])
    return round(100 * float((image @ text.T).argmax(1).eq(labels).float().mean()), 2)


def read_split(folder: Path, split_file: str, part: str) -> tuple[Tensor, Tensor]:
    """Return images and labels of one part of a data set, by CLIP's usual test transform."""
    transform = transforms.Compose(
        [
            transforms.Resize(RECIPE["resolution"], interpolation=InterpolationMode.BICUBIC),
            transforms.CenterCrop(RECIPE["resolution"]),
            transforms.ToTensor(),
            NORMALISE,
        ]
    )
    items = json.loads((folder / split_file).read_text(encoding="utf-8"))[part]
    images = [transform(Image.open(folder / "images" / path).convert("RGB")) for path, *_ in items]
    return torch.stack(images), torch.tensor([label for _, label, _ in items])


def measure(model: CLIP) -> dict[str, float]:
    """Return zero-shot accuracies in % by data set and part; base and new are half the classes."""
    triples = [str(triple) for triple in BENCHMARK]
    images, labels = benchmark_images(torch.Generator().manual_seed(99), 12)
    result = {"held-out triples, clean": accuracy(model, NORMALISE(images), labels, triples)}
    with tempfile.TemporaryDirectory() as scratch:
        digits, shapes = Path(scratch, "digits"), Path(scratch, "shapes")
        write_digits(digits)
        write_shapes(shapes)
        parts = {part: read_split(digits, DIGITS_SPLIT, part) for part in ("train", "val", "test")}
        shapes_test = read_split(shapes, SHAPES_SPLIT, "test")
    images, labels = (torch.cat(column) for column in zip(*parts.values(), strict=True))
    result["digits, all 1797"] = accuracy(model, images, labels, DIGITS)
    result["digits, train"] = accuracy(model, *parts["train"], DIGITS)
    tests = {"digits": (*parts["test"], DIGITS), "shapes": (*shapes_test, triples)}
    for name, (images, labels, names) in tests.items():
        half = len(names) // 2
        base, new = labels < half, labels >= half
        result[f"{name}, test"] = accuracy(model, images, labels, names)
        result[f"{name}, test, base"] = accuracy(model, images[base], labels[base], names[:half])
        new_labels = labels[new] - half
        result[f"{name}, test, new"] = accuracy(model, images[new], new_labels, names[half:])
    return result


def show(result: dict[str, float]) -> None:
    """Print the accuracies as a table."""
    table = Table("zero-shot, “a photo of a {}.”", "accuracy %")
    for name, value in result.items():
        table.add_row(name, f"{value:.2f}")
    CONSOLE.print(table)


def save(content: dict[str, Any], path: Path) -> None:
    """Write the weights file in one step, so that readers never see half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    torch.save(content, draft)
    draft.replace(path)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = ROOT / "anchoropt_plugin" / "assets" / "tiny_clip.pt"
    add = parser.add_argument
    add("--output", type=Path, default=default, help="weights file (default: the embedded one)")
    add("--evaluate", action="store_true", help="measure the file, train nothing")
    add("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    add("--steps", type=int, default=2500, help="batches of 128 (default: %(default)s)")
    add("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.evaluate:
        show(measure(load_clip(str(args.output))))
        return
    start = time.monotonic()
    content = pretrain(args.seed, args.steps)
    minutes = (time.monotonic() - start) / 60
    save(content, args.output)
    result = measure(load_clip(str(args.output)))
    show(result)
    facts = {
        "recipe": {**RECIPE, "seed": args.seed, "steps": args.steps},
        "zero_shot_accuracy": result,
        "trained_parameters": sum(value.numel() for value in content["state_dict"].values()),
        "tokens": len(content["token_ids"]),
        "token_embedding_std": round(
            float(content["state_dict"]["token_embedding.weight"].float().std()), 4
        ),
        "minutes": round(minutes, 1),
        "threads": args.threads,
        "torch": torch.__version__,
        "sha256": hashlib.sha256(args.output.read_bytes()).hexdigest(),
    }
    args.output.with_suffix(".json").write_text(
        json.dumps(facts, indent=1) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()

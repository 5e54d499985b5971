"""The steps whose launches are counted: the text branch, trainers, stage 1, the position matrix.

CLIP has the depth of ViT-B/16 and a small width: launches depend on neither width nor classes.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F

import train
from anchoropt_plugin import accelerate
from anchoropt_plugin.encoders.text_tower import TextTower
from anchoropt_plugin.method.anchor_learning import StageOne
from anchoropt_plugin.method.anchor_prompts import AnchorPrompts
from anchoropt_plugin.method.anchors import AnchorTokens
from anchoropt_plugin.method.position import AnchorPositionModule
from anchoropt_plugin.training.stage_two import AnchorOPT
from anchoropt_plugin.training.two_stages import SUFFIX
from anchoropt_plugin.training.without_data import without_data
from benchmarks.cost import Sizes
from benchmarks.harness import Bench
from benchmarks.plain import CutTextEncoder, PlainPrompts, PlainTextEncoder, class_names
from dassl.engine import TRAINER_REGISTRY
from trainers import prompted_clip

CONFIGS = Path(train.__file__).parent / "configs" / "trainers"
SIZES = Sizes(32, 32, 12, 64, 16, 77, 49408, 64, 8, 12)
BENCH = Bench(SIZES)
CLASSES, STEPS = 6, 3
"""A run has three steps; the second is counted: the first checks and caches, the last prints."""
BATCHES = {"CoOp": 32, "CoCoOp": 1, "MaPLe": 4, "DePT": 32}
"""Images of a training step, as in public runs."""
TEST_BATCH = 100
HOSTS = tuple(BATCHES)
PRECISIONS = ("fp32", "fp16", "amp")
PLAIN, CUT, OURS = "plain", "cut", "ours"
SIDES = (PLAIN, CUT, OURS)
"""Plain: 77 tokens, anchor prompts encoded at each step. Cut: at the longest EOT, anchor prompts
encoded once, what an engineer does in ten minutes. Ours."""

Snapshot = Callable[[], None]
"""Is called between two steps."""


def text_branch(side: str, device: str, between: Snapshot) -> None:
    """Features of prompts with a shared context of five tokens, and back to the context."""
    model = BENCH.clip()
    prompts = PlainPrompts(model, class_names(CLASSES), 5, torch.device(device))
    context = torch.randn(5, SIZES.width).to(device).requires_grad_()
    encoder = {PLAIN: PlainTextEncoder, CUT: CutTextEncoder, OURS: PlainTextEncoder}[side](model)
    encoder.to(device)
    if side == OURS:
        accelerate(encoder)
    for _ in range(STEPS):
        between()
        features = encoder(prompts(context), prompts.tokens)
        torch.autograd.grad(features, context, torch.ones_like(features))
    between()


def position_matrix(device: str, between: Snapshot) -> None:
    """A draw of the position matrix for four soft tokens and an anchor, and back to its logits."""
    module = AnchorPositionModule(4, torch.randn(1, SIZES.width).to(device))
    for _ in range(STEPS):
        between()
        matrix = module.draw()
        torch.autograd.grad(matrix, module.logits, torch.ones_like(matrix))
    between()


def stage_one(side: str, device: str, between: Snapshot) -> None:
    """Epochs of stage 1 between the snapshots, each of three steps; plain encodes 77 tokens."""
    tower = TextTower(BENCH.clip().to(device))
    names = class_names(CLASSES)
    with contextlib.ExitStack() as stack:
        _replace(stack, side)
        AnchorTokens.learn(
            tower,
            names,
            [[f"a photo of a {name}."] for name in names],
            StageOne(epochs=STEPS, steps=STEPS),
            on_epoch=lambda *_: between(),
        )


def batch_of(n: int, n_classes: int, generator: torch.Generator | None = None) -> dict[str, Any]:
    """A batch of ``n`` new images, with the classes in turn."""
    size = SIZES.resolution
    return {
        "img": torch.randn(n, 3, size, size, generator=generator),
        "label": torch.arange(n) % n_classes,
        "domain": torch.zeros(n, dtype=torch.long),
        "impath": [f"{number}.jpg" for number in range(n)],
        "index": torch.arange(n),
    }


class _Batches:
    """Batches of new images; calls ``between`` whenever the trainer asks for one."""

    def __init__(self, n_images: int, between: Snapshot) -> None:
        self.n_images = n_images
        self.between = between

    def __len__(self) -> int:
        return STEPS

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for _ in range(STEPS):
            batch = batch_of(self.n_images, CLASSES)
            self.between()
            yield batch
        self.between()


def run(
    trainer: str,
    precision: str,
    side: str,
    device: str,
    between: Snapshot,
    is_training: bool = True,
) -> None:
    """Steps of stage 2 through a trainer, or batches of an evaluation, all that happens in them.

    In a trainer without AnchorOPT, ours is the fast text branch alone.
    """
    host, node = trainer.removesuffix(SUFFIX), TRAINER_REGISTRY.get(trainer).node
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        cfg = configured(
            *(trainer, precision, device, folder, "SEED", "1", "OPTIM.MAX_EPOCH", "1"),
            *(f"TRAINER.{node}.N_CTX", "4", "TRAINER.MAPLE.PROMPT_DEPTH", "9"),
            *("TRAINER.ANCHOROPT.ANCHOR", "random", "TRAINER.ANCHOROPT.ENSEMBLE", "always"),
            *("TRAINER.ANCHOROPT.FAST_TEXT", str(side == OURS), "TRAIN.PRINT_FREQ", str(STEPS)),
            *("TRAINER.ANCHOROPT.KEEP_FEATURES", str(side == OURS)),
        )
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        loaded = mock.patch.object(prompted_clip, "load_backbone", lambda _: BENCH.clip())
        stack.enter_context(loaded)
        _replace(stack, side)
        batches = _Batches(BATCHES[host] if is_training else TEST_BATCH, between)
        built = without_data(TRAINER_REGISTRY.get(trainer), class_names(CLASSES), batches)(cfg)
        if is_training:
            built.train()
        else:
            built.test()


def configured(trainer: str, precision: str, device: str, folder: str, *keys: str) -> Any:
    """The configuration of a trainer with the settings of the embedded CLIP, without a test."""
    host, node = trainer.removesuffix(SUFFIX), TRAINER_REGISTRY.get(trainer).node
    words = [
        *("--root", folder, "--output-dir", folder, "--trainer", trainer),
        *("--config-file", str(CONFIGS / host / "tiny.yaml"), "DATASET.NAME", "Digits"),
        *(f"TRAINER.{node}.PREC", precision, "USE_CUDA", str(device == "cuda")),
        *("TEST.NO_TEST", "True", *keys),
    ]
    return train.setup_cfg(train.build_parser().parse_args(words))


# ---------------------------------------------------------------------- the plain way
def _encode_77_tokens(self: AnchorPrompts, anchors: Tensor) -> Tensor:
    """In place of ``AnchorPrompts.encode``: the released code encodes all 77 tokens."""
    frame, n_classes = self.frame, len(self.eot)
    context = anchors.to(frame.dtype).expand(n_classes, -1, -1)
    prompts = torch.cat([frame[:, :1], context, frame[:, 1 + self.length :]], 1)
    prompts = F.pad(prompts, (0, 0, 0, SIZES.context - prompts.shape[1]))
    tokens = F.one_hot(torch.tensor(self.eot), SIZES.context)  # argmax finds EOT, as in tokens
    return F.normalize(PlainTextEncoder(self.tower.clip)(prompts, tokens).float(), dim=-1)


@torch.no_grad()
def _encode_at_each_step(self: AnchorOPT) -> Tensor:
    """In place of ``AnchorOPT.class_features``, which encodes anchor prompts once."""
    return self.prompts.encode(self.position.anchors)


PLAIN_ANCHORS = (
    (AnchorPrompts, "encode", _encode_77_tokens),
    (AnchorOPT, "class_features", _encode_at_each_step),
)


def _replace(stack: contextlib.ExitStack, side: str) -> None:
    """Put the code of a side in place of ours, until ``stack`` is closed."""
    if side == PLAIN:
        for owner, name, value in PLAIN_ANCHORS:
            stack.enter_context(mock.patch.object(owner, name, value))
    if side == CUT:
        stack.enter_context(mock.patch.object(prompted_clip, "TextEncoder", CutTextEncoder))

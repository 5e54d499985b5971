"""A device beside the CPU in fp32: the text branch, and whole runs.

Of the fast text branch: the relative difference of features and gradients from the plain way's. Of
whole runs, both stages of each host with AnchorOPT on the embedded CLIP: the largest relative
difference of a loss. The position matrix is the soft one, as a GPU draws other random numbers than
a CPU does.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

import train
from anchoropt_plugin import accelerate
from anchoropt_plugin.encoders.clip_models import CLIP
from anchoropt_plugin.process.randomness import set_random_seed
from anchoropt_plugin.training.without_data import without_data
from benchmarks.harness import Bench
from benchmarks.launch_steps import NODES, PRECISIONS, SIZES
from benchmarks.plain import PlainTextEncoder, class_names
from dassl.engine import TRAINER_REGISTRY
from trainers.host import PromptTrainer
from trainers.prompted_clip import embed_prompts

CLASSES = ["red circle", "blue star", "green square"]
TOLERANCES = {"fp32": 1e-4, "fp16": 0.05, "amp": 0.05}
"""Largest relative difference of a loss."""
BRANCH_TOLERANCES = {"fp32": 1e-5, "fp16": 1e-2, "bf16": 5e-2, "amp": 1e-2}
"""Largest relative difference of features and gradients."""
CLASSES_OF_BRANCH = 6
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
CONFIGS = Path(train.__file__).parent / "configs" / "trainers"


def branch_difference(dtype: str, device: str) -> tuple[float, float]:
    """The relative differences of features and of the context's gradient.

    Args:
        dtype: of the fast branch on ``device``; "amp" is fp32 under autocast.
        device: of the fast branch.
    """
    want = _branch(PlainTextEncoder, "fp32", "cpu")
    found = _branch(_fast_encoder, dtype, device)
    features, gradients = (
        float((ours.cpu().double() - plain.double()).norm() / plain.double().norm())
        for ours, plain in zip(found, want, strict=True)
    )
    return features, gradients


def _fast_encoder(clip: CLIP) -> PlainTextEncoder:
    encoder = PlainTextEncoder(clip)
    accelerate(encoder)
    return encoder


def _branch(
    encoder_of: Callable[[CLIP], PlainTextEncoder], dtype: str, device: str
) -> tuple[Tensor, Tensor]:
    """The features of six classes, and the gradient of their sum at five soft tokens."""
    weights = DTYPES.get(dtype, torch.float32)
    bench = Bench(SIZES, torch.device(device), weights, rounds=1, seconds=0, classes=())
    clip = bench.clip()
    names = class_names(CLASSES_OF_BRANCH)
    tokens, frame = embed_prompts(clip, names, "X X X X X")
    encoder = encoder_of(clip.to(device))
    frame = frame.to(device)
    context = bench.random(5, SIZES.width).requires_grad_()
    for _ in range(2):  # the first call of the fast branch compares it with the plain way
        contexts = context.expand(len(names), -1, -1)
        with torch.autocast(device, enabled=dtype == "amp"):
            features = encoder(torch.cat([frame[:, :1], contexts, frame[:, 6:]], 1), tokens)
        (gradient,) = torch.autograd.grad(features, context, torch.ones_like(features))
    return features.detach(), gradient


def differences(device: str) -> Iterator[tuple[str, str, float]]:
    """Host, precision, and the largest relative difference of a loss from the CPU's."""
    for host in NODES:
        want = losses(host, "fp32", "cpu")
        for precision in PRECISIONS:
            found = losses(host, precision, device)
            pairs = zip(found, want, strict=True)
            yield host, precision, max(abs(a - b) / abs(b) for a, b in pairs)


def losses(host: str, precision: str, device: str) -> list[float]:
    """The losses of a run of two epochs with two batches each."""
    node, seen = NODES[host], []
    forward_backward = PromptTrainer.forward_backward

    def recorded(self, batch):  # type: ignore[no-untyped-def]
        summary = forward_backward(self, batch)
        seen.append(float(summary["loss"]))
        return summary

    draw = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 1, 2, 0])
    batches = [
        {
            "img": torch.randn(4, 3, 32, 32, generator=draw),
            "label": labels,
            "domain": torch.zeros_like(labels),
            "impath": [f"{number}.png" for number in range(4)],
            "index": torch.arange(4),
        }
        for _ in range(2)
    ]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        words = [
            *("--root", folder, "--output-dir", folder, "--trainer", f"{host}_AnchorOPT"),
            *("--config-file", str(CONFIGS / host / "tiny.yaml"), "DATASET.NAME", "Digits"),
            *(f"TRAINER.{node}.PREC", precision, "USE_CUDA", str(device == "cuda")),
            *("TRAINER.ANCHOROPT.POSITION", "soft", "TRAINER.ANCHOROPT.ANCHOR_EPOCHS", "2"),
            *("TRAINER.ANCHOROPT.ANCHOR_CACHE", folder, "OPTIM.MAX_EPOCH", "2"),
            *("TEST.NO_TEST", "True"),
        ]
        cfg = train.setup_cfg(train.build_parser().parse_args(words))
        set_random_seed(0)
        with mock.patch.object(PromptTrainer, "forward_backward", recorded):
            without_data(TRAINER_REGISTRY.get(cfg.TRAINER.NAME), CLASSES, batches)(cfg).train()
    return seen

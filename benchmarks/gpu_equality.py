"""The text branch and whole runs on a device, compared with the CPU in fp32.

A run has both stages of a host with AnchorOPT, on the embedded CLIP. The position matrix is soft,
because a GPU draws other random numbers than a CPU.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable, Iterator
from unittest import mock

import torch
from torch import Tensor

from anchoropt_plugin import accelerate
from anchoropt_plugin.encoders.clip_models import CLIP
from anchoropt_plugin.process.randomness import set_random_seed
from anchoropt_plugin.training.without_data import without_data
from benchmarks.harness import DTYPES, Bench
from benchmarks.launch_steps import HOSTS, PRECISIONS, SIZES, batch_of, configured
from benchmarks.plain import PlainPrompts, PlainTextEncoder, class_names
from dassl.engine import TRAINER_REGISTRY
from trainers.host import PromptTrainer

CLASSES = ["red circle", "blue star", "green square"]
TOLERANCES = {"fp32": 1e-4, "fp16": 0.05, "amp": 0.05}
"""Largest allowed relative difference of a loss."""
BRANCH_TOLERANCES = {"fp32": 1e-5, "fp16": 1e-2, "bf16": 5e-2, "amp": 1e-2}
"""Largest allowed relative difference of features and gradients."""
BRANCH_CLASSES, BRANCH_CONTEXT = 6, 5


def branch_difference(precision: str, device: str) -> tuple[float, float]:
    """Return the relative differences of features and of the context's gradient.

    Args:
        precision: of the fast branch on ``device``; "amp" is fp32 under autocast. The plain way
            runs on the CPU in fp32.
        device: the device of the fast branch.
    """
    plain = _branch(PlainTextEncoder, "fp32", "cpu")
    ours = _branch(_fast_encoder, precision, device)
    features, gradients = (
        float((found.cpu().double() - expected.double()).norm() / expected.double().norm())
        for found, expected in zip(ours, plain, strict=True)
    )
    return features, gradients


def _fast_encoder(clip: CLIP) -> PlainTextEncoder:
    encoder = PlainTextEncoder(clip)
    accelerate(encoder)
    return encoder


def _branch(
    encoder_of: Callable[[CLIP], PlainTextEncoder], precision: str, device: str
) -> tuple[Tensor, Tensor]:
    """Return the features of some classes, and the gradient of their sum to the context."""
    bench = Bench(SIZES, torch.device(device), DTYPES.get(precision, torch.float32))
    clip = bench.clip()
    prompts = PlainPrompts(clip, class_names(BRANCH_CLASSES), BRANCH_CONTEXT, bench.device)
    encoder = encoder_of(clip.to(bench.device))
    context = bench.random(BRANCH_CONTEXT, SIZES.width).requires_grad_()
    for _ in range(2):  # the first call of the fast branch compares it with the plain way
        with torch.autocast(device, torch.float16, enabled=precision == "amp"):
            features = encoder(prompts(context), prompts.tokens)
        (gradient,) = torch.autograd.grad(features, context, torch.ones_like(features))
    return features.detach(), gradient


def differences(device: str) -> Iterator[tuple[str, str, float]]:
    """Yield host, precision, and the largest relative difference of a loss from the CPU's."""
    for host in HOSTS:
        expected = losses(host, "fp32", "cpu")
        for precision in PRECISIONS:
            found = losses(host, precision, device)
            pairs = zip(found, expected, strict=True)
            yield host, precision, max(abs(a - b) / abs(b) for a, b in pairs)


def losses(host: str, precision: str, device: str) -> list[float]:
    """Return the losses of a run of two epochs with two batches each."""
    found = []
    forward_backward = PromptTrainer.forward_backward

    def recorded(self, batch):  # type: ignore[no-untyped-def]
        summary = forward_backward(self, batch)
        found.append(float(summary["loss"]))
        return summary

    draw = torch.Generator().manual_seed(0)
    batches = [batch_of(4, len(CLASSES), draw) for _ in range(2)]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        cfg = configured(
            *(f"{host}_AnchorOPT", precision, device, folder, "OPTIM.MAX_EPOCH", "2"),
            *("TRAINER.ANCHOROPT.POSITION", "soft", "TRAINER.ANCHOROPT.ANCHOR_EPOCHS", "2"),
            *("TRAINER.ANCHOROPT.ANCHOR_CACHE", folder),
        )
        set_random_seed(0)
        with (
            mock.patch.object(PromptTrainer, "forward_backward", recorded),
            torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
        ):
            trainer = without_data(TRAINER_REGISTRY.get(cfg.TRAINER.NAME), CLASSES, batches)(cfg)
            scaler = trainer.scaler.state_dict()
            if scaler:  # its usual scale lets a run leave out its first steps
                trainer.scaler.load_state_dict({**scaler, "scale": 1.0})
            trainer.train()
    return found

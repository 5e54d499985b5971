"""Whole runs on a device compared with the CPU in fp32: the largest difference of a loss.

A run has both stages of a host with AnchorOPT, on the embedded CLIP. The position matrix is soft,
because a GPU draws other random numbers than a CPU.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch

import train
from anchoropt_plugin.process.randomness import set_random_seed
from anchoropt_plugin.training.without_data import without_data
from benchmarks.launch_steps import NODES, PRECISIONS
from dassl.engine import TRAINER_REGISTRY
from trainers.host import PromptTrainer

CLASSES = ["red circle", "blue star", "green square"]
TOLERANCES = {"fp32": 1e-4, "fp16": 0.05, "amp": 0.05}
"""Largest allowed relative difference of a loss."""
CONFIGS = Path(train.__file__).parent / "configs" / "trainers"


def differences(device: str) -> Iterator[tuple[str, str, float]]:
    """Yield host, precision, and the largest relative difference of a loss from the CPU's."""
    for host in NODES:
        expected = losses(host, "fp32", "cpu")
        for precision in PRECISIONS:
            found = losses(host, precision, device)
            pairs = zip(found, expected, strict=True)
            yield host, precision, max(abs(a - b) / abs(b) for a, b in pairs)


def losses(host: str, precision: str, device: str) -> list[float]:
    """Return the losses of a run of two epochs with two batches each."""
    node, found = NODES[host], []
    forward_backward = PromptTrainer.forward_backward

    def recorded(self, batch):  # type: ignore[no-untyped-def]
        summary = forward_backward(self, batch)
        found.append(float(summary["loss"]))
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
    return found

"""Short runs of ``train.py`` on the embedded CLIP and digits, and the losses of their steps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

import train
from anchoropt_plugin.dassl_compat.data import data_manager
from trainers.host import PromptTrainer

NODES = {"CoOp": "COOP", "CoCoOp": "COCOOP", "MaPLe": "MAPLE", "DePT": "COOP"}
"""The hosts, and where their keys are."""
PRECISIONS = ("fp32", "fp16", "amp")

CONFIGS = Path(train.__file__).parent / "configs"
SHORT = (
    *("OPTIM.MAX_EPOCH", "2", "TRAIN.CHECKPOINT_FREQ", "1", "TEST.FINAL_MODEL", "best_val"),
    *("DATASET.NUM_SHOTS", "2", "DATALOADER.TRAIN_X.BATCH_SIZE", "4"),
    *("TRAINER.ANCHOROPT.ANCHOR_EPOCHS", "2"),
)

Losses = dict[tuple[int, int], float]
"""The loss of each step, by epoch and batch from 0 on."""


def command(
    root: Path,
    folder: Path,
    host: str,
    precision: str,
    flags: Sequence[str] = (),
    keys: Sequence[str] = (),
    classes: str = "base",
) -> list[str]:
    """The words of a command: ``host`` with AnchorOPT, its output in ``folder``."""
    node = NODES[host]
    return [
        *("--root", str(root), "--output-dir", str(folder), "--seed", "1"),
        *("--trainer", f"{host}_AnchorOPT"),
        *("--dataset-config-file", str(CONFIGS / "datasets" / "digits.yaml")),
        *("--config-file", str(CONFIGS / "trainers" / host / "tiny.yaml")),
        *flags,
        *(
            "DATASET.SUBSAMPLE_CLASSES",
            classes,
            "TRAINER.ANCHOROPT.ANCHOR_CACHE",
            str(folder / "cache"),
        ),
        *(f"TRAINER.{node}.N_CTX", "2", f"TRAINER.{node}.PREC", precision),
        *SHORT,
        *keys,
    ]


@contextlib.contextmanager
def few_images(step: int = 20) -> Iterator[None]:
    """Evaluate every ``step``-th image of a data set alone, to save time."""
    build_dataset = data_manager.build_dataset

    def build_few(cfg):
        dataset = build_dataset(cfg)
        dataset._val, dataset._test = dataset.val[::step], dataset.test[::step]
        return dataset

    with mock.patch.object(data_manager, "build_dataset", build_few):
        yield


def interrupted_and_resumed(words: Sequence[str]) -> Losses:
    """Run a command, end it in its second epoch, run it again; return the losses of both."""
    with recorded_losses(stop_in=1) as losses:
        assert train.main(words) == 130
        assert {epoch for epoch, _ in losses} == {0}
    with recorded_losses() as more:
        assert train.main(words) == 0
        assert {epoch for epoch, _ in more} == {1}
    return losses | more


@contextlib.contextmanager
def recorded_losses(stop_in: int | None = None) -> Iterator[Losses]:
    """Record the loss of each step; interrupt the run in the epoch ``stop_in``."""
    losses: Losses = {}
    forward_backward = PromptTrainer.forward_backward

    def recorded(self, batch):
        if self.epoch == stop_in:
            raise KeyboardInterrupt
        summary = forward_backward(self, batch)
        losses[self.epoch, self.batch_idx] = float(summary["loss"])
        return summary

    with mock.patch.object(PromptTrainer, "forward_backward", recorded):
        yield losses

"""The training loop of CoOp and its relatives: epochs, and the numbers that they print."""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping
from typing import Any

from ...errors import UserError
from ...files.run_events import append_event
from ...process import distributed
from ...process.late_checks import late_numbers
from ..finite_checks import check_weights, checked_step
from ..utils.meters import AverageMeter, MetricMeter
from ..utils.writer import SummaryWriter
from .base import TrainerBase
from .simple_trainer import SimpleTrainer

__all__ = [
    "AverageMeter",
    "MetricMeter",
    "SimpleTrainer",
    "SummaryWriter",
    "TrainerBase",
    "TrainerX",
    "TrainerXU",
]


class TrainerX(SimpleTrainer):
    """Trains on labelled images, batch by batch."""

    def run_epoch(self) -> None:
        """Train on every batch; print a line after every ``TRAIN.PRINT_FREQ`` batches.

        To read a number of a GPU, the host waits: it reads those of all steps when it prints.
        """
        self.set_model_mode("train")
        losses = MetricMeter()
        batch_time, data_time = AverageMeter(), AverageMeter()
        self.num_batches = len(self.train_loader_x)
        frequency = self.cfg.TRAIN.PRINT_FREQ
        lr = float(self.get_current_lr())
        unread: list[tuple[int, Mapping[str, Any], float]] = []
        end = time.time()
        for batch_idx, batch in enumerate(self.train_loader_x):
            self.batch_idx = batch_idx
            data_time.update(time.time() - end)
            summary = checked_step(self, self.forward_backward, batch)
            step = self.epoch * self.num_batches + self.batch_idx
            numbers = late_numbers(distributed.averaged(summary))
            unread.append((step, numbers, self.get_current_lr()))
            batch_time.update(time.time() - end)
            is_due = (batch_idx + 1) % frequency == 0 or self.num_batches < frequency
            if is_due or self.device.type == "cpu":
                self._read(unread, losses)
            if is_due:
                self._print_progress(batch_time, data_time, losses)
            end = time.time()
        self._read(unread, losses)
        check_weights(self)
        means = {name: float(meter.avg) for name, meter in losses.meters.items()}
        epoch = {"epoch": self.epoch + 1, "epochs": self.max_epoch, "lr": lr}
        append_event(self.output_dir, "epoch", **{**means, **epoch})

    def _read(
        self, unread: list[tuple[int, Mapping[str, Any], float]], losses: MetricMeter
    ) -> None:
        """Move the numbers of steps into ``losses`` and to TensorBoard, step by step."""
        for step, summary, lr in unread:
            losses.update({name: float(value) for name, value in summary.items()})
            for name, meter in losses.meters.items():
                self.write_scalar(f"train/{name}", meter.avg, step)
            self.write_scalar("train/lr", lr, step)
        unread.clear()

    def _print_progress(
        self, batch_time: AverageMeter, data_time: AverageMeter, losses: MetricMeter
    ) -> None:
        done = self.epoch * self.num_batches + self.batch_idx + 1
        left = self.max_epoch * self.num_batches - done
        eta = datetime.timedelta(seconds=int(batch_time.avg * left))
        print(
            f"epoch [{self.epoch + 1}/{self.max_epoch}] "
            f"batch [{self.batch_idx + 1}/{self.num_batches}] "
            f"time {batch_time.val:.3f} ({batch_time.avg:.3f}) "
            f"data {data_time.val:.3f} ({data_time.avg:.3f}) "
            f"{losses} lr {self.get_current_lr():.4e} eta {eta}"
        )

    def parse_batch_train(self, batch: dict[str, Any]) -> Any:
        """Return the images, the labels and the domains of a batch, on the device."""
        keys = "img", "label", "domain"
        return tuple(batch[key].to(self.device, non_blocking=True) for key in keys)


class TrainerXU(SimpleTrainer):
    """The name alone, so that a repository with such a trainer can import its other trainers."""

    def run_epoch(self) -> None:
        """Raise an error: this runtime does not pair labelled with unlabelled batches."""
        raise UserError(
            f"{type(self).__name__} trains on labelled and unlabelled images together (TrainerXU), "
            "which this package's runtime does not do: install Dassl"
        )

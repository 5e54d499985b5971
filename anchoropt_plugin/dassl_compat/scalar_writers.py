"""Where a training writes its scalars: ``TRAIN.LOGGERS``."""

from __future__ import annotations

import csv
import os
import uuid
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torchvision.transforms.functional import to_pil_image
from yacs.config import CfgNode

from ..config.check import LOGGERS, flattened
from ..errors import UserError, nearest
from ..files.atomic import write_text
from ..files.readers import read_text
from ..process import distributed
from .utils.tools import mkdir_if_missing

SCALARS = "scalars.csv"
"""A row for each scalar; ``epoch`` is the epoch in which it was written, empty for the test."""

WANDB_RUN = "wandb_run.txt"
"""The id of the run of Weights & Biases, with which a resumed training continues it."""

_HEADER = ["epoch", "step", "name", "value"]


def check_loggers(cfg: CfgNode) -> None:
    """Check that the packages of ``TRAIN.LOGGERS`` are installed.

    Raises:
        UserError: an unknown name, or the package of Weights & Biases is missing.
    """
    unknown = [name for name in cfg.TRAIN.LOGGERS if name not in LOGGERS]
    if unknown:
        hint = nearest(unknown[0], LOGGERS)
        raise UserError(f"TRAIN.LOGGERS has {unknown[0]!r}{hint}: give any of {', '.join(LOGGERS)}")
    if "wandb" in cfg.TRAIN.LOGGERS and find_spec("wandb") is None:
        raise UserError("TRAIN.LOGGERS wandb needs wandb: pip install 'anchoropt-plugin[wandb]'")


def open_writers(trainer: Any) -> None:
    """Open the writers of ``TRAIN.LOGGERS`` as a trainer's ``_writer``, which writes to all."""
    loggers = trainer.cfg.TRAIN.LOGGERS
    if "tensorboard" in loggers:
        folder = str(Path(trainer.output_dir, "tensorboard"))
        mkdir_if_missing(folder)
        trainer.init_writer(folder)
    if distributed.is_main() and set(loggers) != {"tensorboard"}:
        writers = [trainer._writer] if "tensorboard" in loggers else []
        writers += [CsvWriter(trainer)] if "csv" in loggers else []
        writers += [WandbWriter(trainer.output_dir, trainer.cfg)] if "wandb" in loggers else []
        trainer._writer = Writers(writers)


class CsvWriter:
    """Appends each scalar to ``scalars.csv``; a resumed training replaces the epochs it repeats."""

    def __init__(self, trainer: Any) -> None:
        path, finished = Path(trainer.output_dir, SCALARS), trainer.start_epoch
        lines = read_text(path).splitlines() if finished and path.exists() else []
        kept = [line for line in lines if _epoch_of(line) in range(1, finished + 1)]
        write_text(path, "".join(f"{line}\n" for line in [",".join(_HEADER), *kept]))
        # Line by line, so that a killed training loses none.
        self._file = path.open("a", encoding="utf-8", newline="", buffering=1)
        self._rows = csv.writer(self._file, lineterminator="\n")
        self._trainer = trainer

    def add_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        """Append a row."""
        epoch = "" if self._trainer.is_trained else self._trainer.epoch + 1
        self._rows.writerow([epoch, global_step, tag, float(scalar_value)])

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _epoch_of(line: str) -> int:
    epoch, *others = line.split(",")
    return int(epoch) if epoch.isdecimal() and len(others) == len(_HEADER) - 1 else 0


class WandbWriter:
    """Writes scalars and images to a run of Weights & Biases, whose environment variables apply.

    Args:
        folder: the output folder, which names the run; a resumed training continues its run.
        cfg: the settings that the run shows.
    """

    def __init__(self, folder: str | Path, cfg: CfgNode) -> None:
        self._wandb: Any = import_module("wandb")
        path = Path(folder, WANDB_RUN)
        if not path.exists():
            write_text(path, uuid.uuid4().hex)
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", "anchoropt-plugin"),
            name=os.environ.get("WANDB_NAME", str(folder)),
            dir=str(folder),
            id=read_text(path).strip(),
            resume="allow",
            config=dict(flattened(cfg)),
            settings=self._wandb.Settings(console="off"),  # the log has a file of its own
        )
        self._axes: set[str] = set()

    def add_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        """Write a scalar."""
        self._log(tag, float(scalar_value), global_step)

    def add_image(self, tag: str, image: Any, global_step: int | None = None, **_: Any) -> None:
        """Write an image (H, W) or (3, H, W), with values from 0 to 1."""
        self._log(tag, self._wandb.Image(to_pil_image(image)), global_step)

    def _log(self, tag: str, value: Any, step: int | None) -> None:
        # Each group of tags has an axis of its own, steps or epochs; the axis of a run only grows.
        group = tag.partition("/")[0]
        axis = f"{group}/step"
        if axis not in self._axes:
            self._axes.add(axis)
            self._run.define_metric(axis, hidden=True)
            self._run.define_metric(f"{group}/*", step_metric=axis)
        self._run.log({tag: value, axis: step})

    def close(self) -> None:
        """End the run."""
        self._run.finish()


class Writers:
    """Calls each method on all writers that have it."""

    def __init__(self, writers: Sequence[Any]) -> None:
        self._writers = writers

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args: Any, **kwargs: Any) -> None:
            for writer in self._writers:
                if hasattr(writer, name):
                    getattr(writer, name)(*args, **kwargs)

        return call

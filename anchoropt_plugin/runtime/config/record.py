"""``config.yaml`` in an output folder: with which settings its run was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from ...checkpoints import atomic_write
from ...errors import UserError
from .check import flattened
from .merge import read_yaml

RECORD = "config.yaml"

# These may change when a run goes on: what is trained does not depend on them.
FREE = {
    "OUTPUT_DIR",
    "RESUME",
    "USE_CUDA",
    "VERBOSE",
    "DATASET.ROOT",
    "DATALOADER.NUM_WORKERS",
    "TRAIN.PRINT_FREQ",
    "TRAIN.CHECKPOINT_FREQ",
}
_NAMED_AT_MOST = 3


def write_record(cfg: CfgNode, folder: str | Path) -> None:
    """Write ``cfg`` to ``config.yaml`` in an output folder, whole or not at all."""
    with atomic_write(Path(folder, RECORD)) as file:
        file.write(cfg.dump().encode())


def check_same_run(cfg: CfgNode, folder: str | Path) -> None:
    """Check that the checkpoints in an output folder, if any, are those of a run with ``cfg``.

    A folder without a ``config.yaml``, one of another repository, is let be.

    Raises:
        UserError: They are another run's; the first keys that differ are named.
    """
    path = Path(folder, RECORD)
    if not path.is_file() or not any(Path(folder).glob("*/checkpoint")):
        return
    there = _settings(read_yaml(path))
    here = _settings(yaml.safe_load(cfg.dump()))
    differing = [key for key in here if key in there and here[key] != there[key]]
    if differing:
        named = [f"{key} is {there[key]!r} there, {here[key]!r} here" for key in differing]
        more = len(named) - _NAMED_AT_MOST
        raise UserError(
            f"{folder} holds another run: {'; '.join(named[:_NAMED_AT_MOST])}"
            f"{f'; and {more} more' if more > 0 else ''}: give another --output-dir"
        )


def _settings(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in flattened(values)
        if key not in FREE and not key.startswith("TEST.")
    }

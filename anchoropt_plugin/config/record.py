"""In an output folder: with which settings its run was trained, and on which classes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from ..errors import UserError
from ..files.atomic import atomic_write
from .check import flattened
from .merge import merge_dict, read_yaml

RECORD = "config.yaml"
CLASSES = "classes.json"
"""The class names, in the order of their labels."""

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


def write_record(cfg: CfgNode, folder: str | Path, class_names: Sequence[str]) -> None:
    """Write ``config.yaml`` and ``classes.json`` in an output folder, whole or not at all."""
    with atomic_write(Path(folder, RECORD)) as file:
        file.write(cfg.dump().encode())
    with atomic_write(Path(folder, CLASSES)) as file:
        file.write(json.dumps(list(class_names), indent=1).encode())


def merge_record(cfg: CfgNode, folder: str | Path) -> None:
    """Merge the ``config.yaml`` of an output folder into ``cfg``; keys not there yet are added.

    Raises:
        UserError: It cannot be read, or a value has another type than the default.
    """
    path = Path(folder, RECORD)
    _merge_or_add(cfg, read_yaml(path), str(path))


def _merge_or_add(cfg: CfgNode, values: Mapping[str, Any], source: str) -> None:
    for key, value in values.items():
        if key not in cfg:
            cfg[key] = _node(value, f"{source}: {key}") if isinstance(value, Mapping) else value
        elif isinstance(cfg[key], CfgNode) and isinstance(value, Mapping):
            _merge_or_add(cfg[key], value, source)
        else:
            merge_dict(cfg, {key: value}, source)


def _node(value: Mapping[str, Any], where: str) -> CfgNode:
    try:
        return CfgNode(dict(value))
    except AssertionError as error:  # so yacs answers a key or a value that it does not take
        raise UserError(f"{where} is not a section of a config: {error}") from error


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

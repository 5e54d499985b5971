"""The settings and the class names of a run, recorded in its output folder."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from ..errors import UserError
from ..files.atomic import write_text
from ..files.checkpoint_folder import epoch_in_name, last_checkpoint_name
from ..files.readers import read_json
from ..files.training_images import content_of
from .check import flattened
from .merge import merge_or_add, read_yaml

log = logging.getLogger("anchoropt_plugin")

RECORD = "config.yaml"
CLASSES = "classes.json"
"""The class names, in the order of their labels."""
WEIGHTS = "weights.json"
"""A hash of the CLIP, if ``MODEL.BACKBONE.NAME`` is a file or folder: others may take its place."""
_SUFFIXES_OF_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
RUN_RECORD = "anchoropt.json"
"""Of a run with AnchorOPT: the classes and the settings that a model was trained with."""
EPOCHS = "OPTIM.MAX_EPOCH"
BACKBONE = "MODEL.BACKBONE.NAME"
OF_TRAINING = ("DATASET.NUM_SHOTS", "SEED")
"""Keys that say how a model was trained: a test has the values of the training, not its own."""


def write_record(cfg: CfgNode, folder: str | Path, class_names: Sequence[str]) -> None:
    """Write ``config.yaml``, ``classes.json`` and ``weights.json`` into an output folder."""
    write_text(Path(folder, RECORD), cfg.dump())
    write_text(Path(folder, CLASSES), json.dumps(list(class_names), indent=1))
    weights = hash_of_weights(cfg.MODEL.BACKBONE.NAME)
    if weights:
        write_text(Path(folder, WEIGHTS), json.dumps({"sha256": weights}))


def hash_of_weights(backbone: str) -> str:
    """Return a short hash of the file, or of a folder's files, of weights; empty for a name."""
    path = Path(backbone).expanduser()
    if path.is_file():
        return _hash(path, path.stat().st_mtime_ns)
    found = path.iterdir() if backbone and path.is_dir() else ()
    files = sorted(file for file in found if file.suffix in _SUFFIXES_OF_WEIGHTS)
    hashes = [[file.name, _hash(file, file.stat().st_mtime_ns)] for file in files]
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()[:16] if hashes else ""


@lru_cache(maxsize=64)
def _hash(path: Path, changed: int) -> str:
    """Return the hash of a file; every checkpoint asks for it, and weights may have gigabytes."""
    return content_of(path)


def recorded_weights(folder: str | Path) -> str:
    """Return the hash in the ``weights.json`` of an output folder; empty without one.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    path = Path(folder, WEIGHTS)
    match read_json(path) if path.is_file() else {"sha256": ""}:
        case {"sha256": str(found)}:
            return found
    raise UserError(f"{path} does not hold a hash of weights: remove it")


def merge_record(cfg: CfgNode, folder: str | Path) -> None:
    """Merge the ``config.yaml`` of an output folder into ``cfg``; new keys are added.

    Raises:
        UserError: an unreadable file, or a value of another type than the default.
    """
    path = Path(folder, RECORD)
    merge_or_add(cfg, read_yaml(path), str(path))


def final_epoch(folder: str | Path, model: str) -> int | None:
    """Return the epoch of the checkpoint that a run tests at its end; None for the best one.

    Without a ``config.yaml`` it is the best one, as in Dassl; and without a last checkpoint.

    Args:
        folder: the output folder of the run.
        model: name of the model's folder in it.

    Raises:
        UserError: the name of the last checkpoint has no epoch.
    """
    record, last = Path(folder, RECORD), Path(folder, model, "checkpoint")
    if not record.is_file() or not last.is_file():
        return None
    settings = recorded_settings(folder)
    of_last = settings.get("TEST.FINAL_MODEL") != "best_val"
    done = epoch_in_name(last_checkpoint_name(last.parent))
    if done is None and of_last:
        raise UserError(f"{last} names no checkpoint of an epoch: give the epoch (--load-epoch)")
    epochs = settings.get(EPOCHS)
    stops_early = settings.get("TRAIN.PATIENCE", 0) > 0
    if done is not None and isinstance(epochs, int) and done < epochs and not stops_early:
        log.warning("%s: the training stopped after epoch %d of %d", folder, done, epochs)
    return done if of_last else None


def recorded_settings(folder: str | Path) -> dict[str, Any]:
    """Return the settings of the run in an output folder by dotted key; none without a record."""
    record = Path(folder, RECORD)
    return dict(flattened(read_yaml(record))) if record.is_file() else {}


def trained_among(folder: str | Path, class_names: Sequence[str]) -> int:
    """Return how many of ``class_names`` the run in an output folder was trained on."""
    recorded = Path(folder, CLASSES)
    return len({*class_names} & {*read_json(recorded)}) if recorded.is_file() else 0

"""The settings and the class names of a run, recorded in its output folder."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from ..errors import UserError
from ..files.atomic import write_text
from ..files.checkpoint_folder import last_checkpoint_name
from ..files.readers import read_json
from ..files.training_images import content_of
from .check import flattened
from .merge import merge_dict, read_yaml

log = logging.getLogger("anchoropt_plugin")

RECORD = "config.yaml"
CLASSES = "classes.json"
"""The class names, in the order of their labels."""
WEIGHTS = "weights.json"
"""A hash of the CLIP, if ``MODEL.BACKBONE.NAME`` is a file or folder: others may take its place."""
_SUFFIXES_OF_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")

# A resumed run may change these keys: training does not depend on them, except on USE_CUDA: another
# device draws and rounds in another way. NUM_WORKERS is none of them: each worker process draws the
# random transforms of its batches from a stream of its own.
FREE = {
    "OUTPUT_DIR",
    "RESUME",
    "USE_CUDA",
    "VERBOSE",
    "DATASET.ROOT",
    "TRAIN.PRINT_FREQ",
    "TRAIN.CHECKPOINT_FREQ",
    "TRAIN.LOGGERS",
}
_EPOCHS, _EXTEND = "OPTIM.MAX_EPOCH", "OPTIM.EXTEND"
# A validation after each epoch takes random numbers, too.
_DRAWS = {"TEST.FINAL_MODEL"}
# A test may not change these keys: the outputs of a trained model depend on them.
_OF_MODEL = {
    "MODEL.BACKBONE.NAME",
    "MODEL.BACKBONE.CONFIG",
    "INPUT.SIZE",
    "INPUT.INTERPOLATION",
    "INPUT.PIXEL_MEAN",
    "INPUT.PIXEL_STD",
}
# Keys of a host that a test may change: the precision, and the number of soft tokens, which a
# checkpoint's shapes tell (TRAINER.ANCHOROPT.N_CTX may have set it).
_FREE_AT_TEST = {"PREC", "N_CTX"}
_NAMED_AT_MOST = 3
_OF_ORDER = ("DATASET.NAME", "DATASET.CLASS_SPLIT")


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


def check_same_weights(cfg: CfgNode, folder: str | Path) -> None:
    """Check that the files of the CLIP are those that an output folder was trained with.

    Raises:
        UserError: it has other content now.
    """
    there, here = recorded_weights(folder), hash_of_weights(cfg.MODEL.BACKBONE.NAME)
    if there and here and there != here:
        raise UserError(
            f"{cfg.MODEL.BACKBONE.NAME} holds other weights than when {folder} was trained: give "
            "the file or folder of that training (--backbone)"
        )


def check_same_classes(folder: str | Path, class_names: Sequence[str]) -> None:
    """Check that the checkpoints in an output folder, if any, come from a run with these classes.

    Raises:
        UserError: they come from a run with other classes.
    """
    recorded = Path(folder, CLASSES)
    if recorded.is_file() and any(Path(folder).glob("*/checkpoint")):
        others = read_json(recorded)
        if others != list(class_names):
            raise UserError(
                f"{folder} holds a run with other classes ({', '.join(map(str, others[:3]))} …): "
                "give another --output-dir"
            )


def check_same_order(cfg: CfgNode, folder: str | Path, class_names: Sequence[str]) -> None:
    """Check that a test has the trained ones among its class names in the order of the training.

    Else a file of class names was changed in between: each image would count for another class.
    Another data set or class split may have another order.

    Raises:
        UserError: the order differs; the message names the first two classes that do.
    """
    record, recorded = Path(folder, RECORD), Path(folder, CLASSES)
    if not record.is_file() or not recorded.is_file():
        return
    settings, here = dict(flattened(read_yaml(record))), dict(flattened(cfg))
    if any(settings.get(key, here[key]) != here[key] for key in _OF_ORDER if key in here):
        return
    trained, tested = dict.fromkeys(read_json(recorded)), dict.fromkeys(class_names)
    of_both = (filter(tested.__contains__, trained), filter(trained.__contains__, tested))
    for before, now in zip(*of_both, strict=True):
        if before != now:
            raise UserError(
                f"{folder} was trained with the same class names in another order: {before!r} "
                f"stood where {now!r} is now: undo the change of the data set's class names "
                "(classnames.txt, the split), or train again"
            )


def merge_record(cfg: CfgNode, folder: str | Path) -> None:
    """Merge the ``config.yaml`` of an output folder into ``cfg``; new keys are added.

    Raises:
        UserError: an unreadable file, or a value of another type than the default.
    """
    path = Path(folder, RECORD)
    merge_or_add(cfg, read_yaml(path), str(path))


def merge_or_add(cfg: CfgNode, values: Mapping[str, Any], source: str) -> None:
    """Merge a nested dict into ``cfg``; new keys are added.

    Raises:
        UserError: a value of another type than the one in ``cfg``.
    """
    for key, value in values.items():
        if key not in cfg:
            cfg[key] = _node(value, f"{source}: {key}") if isinstance(value, Mapping) else value
        elif isinstance(cfg[key], CfgNode) and isinstance(value, Mapping):
            merge_or_add(cfg[key], value, source)
        else:
            merge_dict(cfg, {key: value}, source)


def _node(value: Mapping[str, Any], where: str) -> CfgNode:
    try:
        return CfgNode(dict(value))
    except AssertionError as error:  # yacs raises it for keys and values that it refuses
        raise UserError(f"{where} is not a section of a config: {error}") from error


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
    settings = dict(flattened(read_yaml(record)))
    of_last = settings.get("TEST.FINAL_MODEL") != "best_val"
    number = re.search(r"-(\d{1,9})$", last_checkpoint_name(last.parent))
    if number is None and of_last:
        raise UserError(f"{last} names no checkpoint of an epoch: give the epoch (--load-epoch)")
    done, epochs = int(number[1]) if number else None, settings.get(_EPOCHS)
    stops_early = settings.get("TRAIN.PATIENCE", 0) > 0
    if done is not None and isinstance(epochs, int) and done < epochs and not stops_early:
        log.warning("%s: the training stopped after epoch %d of %d", folder, done, epochs)
    return done if of_last else None


def recorded_seed(folder: str | Path) -> int | None:
    """Return the seed of the run in an output folder; None if it had none, or is not recorded."""
    record = Path(folder, RECORD)
    seed = read_yaml(record).get("SEED") if record.is_file() else None
    return seed if isinstance(seed, int) and seed >= 0 else None


def trained_among(folder: str | Path, class_names: Sequence[str]) -> int:
    """Return how many of ``class_names`` the run in an output folder was trained on."""
    recorded = Path(folder, CLASSES)
    return len({*class_names} & {*read_json(recorded)}) if recorded.is_file() else 0


def check_same_run(cfg: CfgNode, folder: str | Path) -> None:
    """Check that the checkpoints in an output folder, if any, come from a run with ``cfg``.

    A folder without a ``config.yaml`` is accepted: another repository may have written it. With
    ``OPTIM.EXTEND`` the run may have had fewer epochs.

    Raises:
        UserError: checkpoints of another run; the message names the first keys that differ.
    """
    path = Path(folder, RECORD)
    if not path.is_file() or not any(Path(folder).glob("*/checkpoint")):
        return
    there = _settings(read_yaml(path))
    here = _settings(yaml.safe_load(cfg.dump()))
    check_same_weights(cfg, folder)
    longer = here.get(_EPOCHS, 0) > there.get(_EPOCHS, 0)
    if longer and here.get(_EXTEND):
        there = {key: value for key, value in there.items() if key not in (_EPOCHS, _EXTEND)}
    differing = _differing(there, here)
    if differing:
        only = [key for key in here if key in there and here[key] != there[key]] == [_EPOCHS]
        hint = (
            f", or {_EXTEND} True to train on, with the learning rates of {here[_EPOCHS]} epochs "
            "from now on"
        )
        remedy = "leave --resume out" if str(folder) == cfg.RESUME else "give another --output-dir"
        raise UserError(
            f"{folder} holds a run with other settings: {differing}: {remedy}"
            f"{hint if only and longer and _EXTEND in here else ''}"
        )


def check_same_model(cfg: CfgNode, folder: str | Path, nodes: Iterable[str]) -> None:
    """Check that a test has the settings on which the outputs of a trained model depend.

    These are the backbone, the way from an image to a tensor, and the keys of the host.
    A folder without a ``config.yaml`` is accepted: another repository may have written it.

    Args:
        cfg: the configuration of the test.
        folder: the output folder of the trained model.
        nodes: names of the host's nodes in ``cfg.TRAINER``, in any case.

    Raises:
        UserError: the model was trained with other settings; the message names the first ones.
    """
    path = Path(folder, RECORD)
    if not path.is_file():
        return
    of_host = {f"TRAINER.{node}".upper() for node in nodes}
    there, here = (
        _settings_of_model(values, of_host)
        for values in (read_yaml(path), yaml.safe_load(cfg.dump()))
    )
    differing = _differing(there, here)
    check_same_weights(cfg, folder)
    if differing:
        raise UserError(
            f"{folder} was trained with other settings: {differing}: give the --config-file and "
            "the values that it was trained with"
        )


def _settings_of_model(values: dict[str, Any], of_host: Collection[str]) -> dict[str, Any]:
    found = {}
    for key, value in _flattened(values):
        section, _, name = key.rpartition(".")
        if key == "INPUT.TRANSFORMS" and isinstance(value, list):  # the others are for training
            found[key] = [one for one in value if one in ("normalize", "instance_norm")]
        elif key in _OF_MODEL or (section.upper() in of_host and name not in _FREE_AT_TEST):
            found[key] = value
    return found


def _differing(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Return the first keys in both mappings whose values differ, in words."""
    differing = [key for key in here if key in there and here[key] != there[key]]
    named = [f"{key} was {there[key]!r}, now {here[key]!r}" for key in differing]
    more = len(named) - _NAMED_AT_MOST
    return f"{'; '.join(named[:_NAMED_AT_MOST])}{f'; and {more} more' if more > 0 else ''}"


def _flattened(values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and values; with ``~`` as the home folder, as a command line gives it."""
    for key, value in flattened(values):
        yield key, os.path.expanduser(value) if isinstance(value, str) else value  # noqa: PTH111


def _settings(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in _flattened(values)
        if key not in FREE and (key in _DRAWS or not key.startswith("TEST."))
    }

"""Whether a run, or a test, has the settings, classes and weights of an output folder."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from ..errors import UserError
from ..files.readers import read_json
from ..files.run_events import RESULTS
from ..files.training_images import content_of, recorded
from .check import as_in_yaml, flattened
from .merge import read_yaml
from .record import (
    BACKBONE,
    CLASSES,
    EPOCHS,
    OF_TRAINING,
    RECORD,
    RUN_RECORD,
    hash_of_weights,
    recorded_settings,
    recorded_weights,
)

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
    "TRAINER.ANCHOROPT.ANCHOR_CACHE",
}
_EXTEND = "OPTIM.EXTEND"
_NODE = "TRAINER.ANCHOROPT."
# In the run of a checkpoint: its record has the arguments of @anchoropt and what a preset sets.
_IN_FORCE = "settings in force"
# A validation after each epoch takes random numbers, too.
_DRAWS = {"TEST.FINAL_MODEL"}
# A test may not change these keys: the outputs of a trained model depend on them.
_OF_MODEL = {
    BACKBONE,
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


def check_same_weights(cfg: CfgNode, folder: str | Path) -> bool:
    """Check that the files of the CLIP are those that an output folder was trained with.

    Returns:
        Whether they are known to be: they may have another path then. A CLIP that is given by its
        name has no file.

    Raises:
        UserError: it has other content now.
    """
    there, here = recorded_weights(folder), hash_of_weights(cfg.MODEL.BACKBONE.NAME)
    if there and here and there != here:
        raise UserError(
            f"{cfg.MODEL.BACKBONE.NAME} holds other weights than when {folder} was trained: give "
            "the file or folder of that training (--backbone)"
        )
    return bool(there and here)


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
    there = _settings(read_yaml(path)) | _settings_of_anchoropt(folder)
    here = _settings(cfg)
    if check_same_weights(cfg, folder):
        here.pop(BACKBONE, None)
    longer = here.get(EPOCHS, 0) > there.get(EPOCHS, 0)
    if longer and here.get(_EXTEND):
        there = {key: value for key, value in there.items() if key not in (EPOCHS, _EXTEND)}
    differing = _differing(there, here)
    if differing:
        only = [key for key in here if key in there and here[key] != there[key]] == [EPOCHS]
        hint = (
            f", or {_EXTEND} True to train on, with the learning rates of {here[EPOCHS]} epochs "
            "from now on"
        )
        remedy = "leave --resume out" if str(folder) == cfg.RESUME else "give another --output-dir"
        raise UserError(
            f"{folder} holds a run with other settings: {differing}: {remedy}"
            f"{hint if only and longer and _EXTEND in here else ''}"
        )


def _settings_of_anchoropt(folder: str | Path) -> dict[str, Any]:
    """Return the keys of ``TRAINER.ANCHOROPT`` that a run had, as its ``anchoropt.json`` says.

    The ``config.yaml`` of an earlier version lacks the arguments of ``@anchoropt`` and what a
    preset sets.
    """
    path = Path(folder, RUN_RECORD)
    match read_json(path) if path.is_file() else {}:
        case {"settings": dict(settings)}:
            # N_CTX 0 is the number of the host, which may have a key of that name there.
            names = [name for name, value in settings.items() if value or name != "n_ctx"]
            return _settings({f"{_NODE}{name.upper()}": settings[name] for name in names})
    return {}


def run_of(folder: str | Path) -> dict[str, Any]:
    """Return what decides the numbers of the run in an output folder, as its files record it.

    Returns:
        Values that a checkpoint can hold: settings by key, and digests of the class names and of
        the training images. It is empty without a ``config.yaml``.
    """
    path, classes = Path(folder, RECORD), Path(folder, CLASSES)
    if not path.is_file():
        return {}
    found = {**_settings(read_yaml(path)), _IN_FORCE: True}
    weights, seed = recorded_weights(folder), found.get("SEED")
    if weights:  # the file or folder may be moved
        found.pop(BACKBONE, None)
        found["digest of the weights"] = weights
    if classes.is_file():
        found["digest of the classes"] = content_of(classes)
    if isinstance(seed, int) and seed >= 0:  # without one, each start draws images of its own
        found["digest of the training images"] = recorded(folder).get("digest")
    return found


def check_of_folder(path: Path, run: Any) -> None:
    """Check that a checkpoint was not copied from another run.

    Args:
        path: the checkpoint, in a folder of the output folder.
        run: what ``run_of`` returned when it was saved; empty before the record was written, None
            in a checkpoint of an earlier version.

    Raises:
        UserError: its output folder is of another run; the message names the first differences.
    """
    folder = path.parent.parent
    here = run_of(folder) if run and isinstance(run, dict) else {}
    if here.get(_EXTEND):
        here = {key: value for key, value in here.items() if key not in (EPOCHS, _EXTEND)}
    if here and _IN_FORCE not in run:  # of an earlier version; a resumed run records them now
        run = {key: value for key, value in run.items() if not key.startswith(_NODE)}
    differing = _differing(run, here) if here else ""
    if differing:
        raise UserError(
            f"{path} is not of the run in {folder}: {differing}: copy whole folders, undo the "
            "change of its files, or train again"
        )


def check_results_of_folder(folder: Path, results: Mapping[str, Any]) -> None:
    """Check that the ``results.json`` in an output folder was not copied from another run.

    The ``config.yaml`` there is that of the trained run; in an experiment also that of a test. A
    test in the folder of its model may have other classes, or another data set.

    Args:
        folder: the output folder; one without a ``config.yaml`` is accepted.
        results: the content of the file. The tests of an earlier version state no ``training``, and
            the shots and the seed of their own command: they are accepted.

    Raises:
        UserError: it is of another run; the message names the first settings that differ.
    """
    if "training" not in results and not results.get("after_training"):
        return
    here = dict(_flattened(recorded_settings(folder)))
    known = (results.get(name) for name in ("training", "settings"))
    differing = [_differing(dict(_flattened(one)), here) for one in known if one]
    if differing and all(differing):
        raise UserError(
            f"{folder / RESULTS} is not of the run in its folder: {differing[0]}: remove it and "
            "test again"
        )


def check_same_model(
    cfg: CfgNode, folder: str | Path, trainer: type, nodes: Iterable[str] = ()
) -> None:
    """Check that a test has the trainer and settings on which a trained model's outputs depend.

    The settings are the backbone, the way from an image to a tensor, and the keys of the host. A
    base class of the trainer may have trained the model. Hosts of another one often load what fits
    and leave out what it learned besides.
    A folder without a ``config.yaml`` is accepted: another repository may have written it.

    Args:
        cfg: the configuration of the test.
        folder: the output folder of the trained model.
        trainer: the class of the test's trainer; ``also_trained_by`` are further names.
        nodes: names of the host's nodes in ``cfg.TRAINER``, in any case, besides those of its
            classes.

    Raises:
        UserError: the model was trained with another trainer, or other settings; the message names
            the first ones.
    """
    path = Path(folder, RECORD)
    if not path.is_file():
        return
    kinds = [one.__name__ for one in trainer.__mro__] + getattr(trainer, "also_trained_by", [])
    of_host = {f"TRAINER.{node}".upper() for node in (*kinds, *nodes)}
    record = read_yaml(path)
    there, here = (_settings_of_model(values, of_host) for values in (record, cfg))
    if check_same_weights(cfg, folder):
        here.pop(BACKBONE, None)
    differing = _differing(there, here)
    name = dict(flattened(record)).get("TRAINER.NAME")
    if name and name not in kinds:
        raise UserError(
            f"{folder} was trained with {name}, this run has {trainer.__name__}: give --trainer "
            f"{name}"
        )
    if differing:
        raise UserError(
            f"{folder} was trained with other settings: {differing}: give the --config-file and "
            "the values that it was trained with"
        )


def note_other_training(cfg: CfgNode, folder: str | Path) -> None:
    """Print where a test sets another seed or number of shots than its model was trained with."""
    there, here = recorded_settings(folder), dict(flattened(cfg))
    for key in OF_TRAINING:
        if here[key] not in (there.get(key, here[key]), -1):  # -1: not set
            print(f"Note: the model was trained with {key} {there[key]}, not {here[key]}")


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
    differing = [key for key in there if key in here and here[key] != there[key]]
    named = [f"{key} was {there[key]!r}, now {here[key]!r}" for key in differing]
    more = len(named) - _NAMED_AT_MOST
    return f"{'; '.join(named[:_NAMED_AT_MOST])}{f'; and {more} more' if more > 0 else ''}"


def _flattened(values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and values as a record has them, with ``~`` as the home folder."""
    for key, value in flattened(values):
        yield key, os.path.expanduser(value) if isinstance(value, str) else as_in_yaml(value)  # noqa: PTH111


def _settings(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in _flattened(values)
        if key not in FREE and (key in _DRAWS or not key.startswith("TEST."))
    }

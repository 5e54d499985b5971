"""Load a ``Predictor``: from the output folder of a run, or from exported class weights."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..config.record import CLASSES, RECORD, RUN_RECORD, final_epoch, merge_record
from ..config.same_run import check_same_weights
from ..dassl_compat.class_contexts import check_contexts
from ..encoders.clip_models import first_twins, words_of
from ..errors import UserError, nearest
from ..files.class_weights import SUFFIXES
from ..files.readers import read_json
from .predictor import Predictor
from .run_record import read_record
from .settings import extend_cfg
from .trainer_registry import two_stages_on_demand
from .two_stages import TwoStages
from .without_data import without_data

log = logging.getLogger("anchoropt_plugin")

_WARNING = "Warning: "


def load_predictor(
    model_dir: str | Path,
    classes: Sequence[str] | None = None,
    epoch: int | None = None,
    *,
    backbone: str | None = None,
    device: str | None = None,
) -> Predictor:
    """Load the model that a run trained.

    Args:
        model_dir: the run's output folder, with ``config.yaml`` and checkpoints; or class weights
            that ``Predictor.export`` wrote, a file that ends in ``.safetensors`` or ``.npz`` and
            needs no trainer.
        classes: class names to choose from; None takes those of the run, from ``classes.json``.
            They may differ from the run's: as at test, ``_AnchorOPT`` averages with the anchor
            logits if a class was not trained.
        epoch: epoch of the checkpoint; None takes the one that the run tests at its end.
        backbone: name, file or folder of the CLIP, if it is elsewhere now.
        device: "cpu" or "cuda"; None takes a GPU if there is one, and if the run may use it.

    Returns:
        The predictor, its model in eval mode.

    Raises:
        UserError: the folder holds no such run or checkpoint, its trainer is not registered (import
            its module first), the classes do not fit, or one class alone is given. Class weights
            are damaged, belong to another CLIP, or were asked for other classes.

    Example::

        import trainers  # registers this repository's trainers
        from anchoropt_plugin import load_predictor

        predictor = load_predictor("output/base")
        predictor("cat.jpg")  # {"cat": 0.93, "dog": 0.05, ...}
    """
    if isinstance(classes, str):  # a sequence of letters
        raise UserError(f"the class names are the str {classes!r}: give a list of names")
    if classes is not None and len(classes) == 1:
        raise UserError(
            f"{next(iter(classes))!r} is one class name alone, which each image would have: give "
            'several, as a list (["red fox", "badger"]; predict: --classes "red fox" badger)'
        )
    if epoch is not None and not isinstance(epoch, int):
        raise UserError(f"the epoch is {epoch!r}: give a whole number")
    folder = Path(model_dir).expanduser()
    _check_device(device)
    if folder.suffix in SUFFIXES and not folder.is_dir():
        if classes is not None or epoch is not None:
            raise UserError(
                f"{folder} holds the weights of its own classes and epoch alone: give the output "
                "folder of the run, or export again"
            )
        return Predictor.of_file(folder, backbone, device)
    if folder.is_file():
        raise UserError(
            f"{folder} is neither the output folder of a run nor class weights "
            f"({', '.join(SUFFIXES)}): onnxruntime runs an exported .onnx file"
        )
    with contextlib.redirect_stdout(io.StringIO()) as printed:  # Dassl and hosts tell what they do
        predictor = _of_run(folder, classes, epoch, device, backbone)
    log.debug("%s", printed.getvalue())
    if classes is not None:  # the training told them of its own classes
        told = (line for line in printed.getvalue().splitlines() if line.startswith(_WARNING))
        for line in dict.fromkeys(told):
            log.warning("%s", line.removeprefix(_WARNING))
    return predictor


def _of_run(
    folder: Path,
    classes: Sequence[str] | None,
    epoch: int | None,
    device: str | None,
    backbone: str | None,
) -> Predictor:
    """Return the predictor of a run's output folder; see ``load_predictor``."""
    cfg = _recorded_cfg(folder, device, backbone)
    names = _named(_recorded_classes(folder) if classes is None else list(classes))
    twins = None if classes is None else first_twins(names)  # ImageNet has two of one name
    if twins:
        first, second = (names[place] for place in twins)
        raise UserError(f"the classes {first!r} and {second!r} are one to CLIP: give one of them")
    trainer = without_data(_trainer_class(cfg.TRAINER.NAME), names)(cfg)
    check_contexts(trainer, folder, names)
    models = trainer.get_model_names()
    if not models and epoch is not None:
        raise UserError(
            f"{cfg.TRAINER.NAME} trains nothing, so it has no epochs: leave epoch (--load-epoch) "
            "out"
        )
    if models:
        _load(trainer, folder, final_epoch(folder, models[0]) if epoch is None else epoch)
    if isinstance(trainer, TwoStages) and not trainer.anchoropt.has_anchors:
        raise UserError(
            f"the checkpoint in {folder} has no anchors, it belongs to the plain host: give the "
            f"output folder of a run of {cfg.TRAINER.NAME}"
        )
    return Predictor.of_trainer(trainer)


def _load(trainer: Any, folder: Path, epoch: int | None) -> None:
    try:
        trainer.load_model(str(folder), epoch=epoch)
    except (KeyError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{folder} does not fit {trainer.cfg.TRAINER.NAME}: {reason}") from error


def _check_device(device: str | None) -> None:
    if device not in (None, "cpu", "cuda"):
        raise UserError(f"device is {device!r}: give 'cpu' or 'cuda'")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device is 'cuda', but torch finds no GPU: give 'cpu'")


def _recorded_cfg(folder: Path, device: str | None = None, backbone: str | None = None) -> Any:
    """Return the configuration that a run was trained with; its CLIP may have another path now."""
    from dassl.config import get_cfg_default

    if not (folder / RECORD).is_file():
        raise UserError(
            f"{folder} has no {RECORD}: give the output folder of a run of this repository's "
            "train.py, or of an _AnchorOPT trainer, without --eval-only (ZeroshotCLIP, too); or a "
            "file of exported class weights"
        )
    cfg = get_cfg_default()
    extend_cfg(cfg)
    merge_record(cfg, folder)
    recorded = cfg.MODEL.BACKBONE.NAME
    cfg.MODEL.BACKBONE.NAME = backbone or recorded
    if not check_same_weights(cfg, folder) and backbone not in (None, recorded):
        raise UserError(
            f"{folder} was trained with {recorded}, whose weights it did not record, so {backbone} "
            "cannot be compared: leave backbone (--backbone) out"
        )
    cfg.MODEL.INIT_WEIGHTS = ""  # the checkpoint holds everything that was trained
    if (folder / RUN_RECORD).is_file():
        # The config.yaml of an earlier version lacks the arguments of @anchoropt.
        record = read_record(folder / RUN_RECORD)
        for name, value in record["settings"].items():
            cfg.TRAINER.ANCHOROPT[name.upper()] = value
    if device is not None:
        cfg.USE_CUDA = device == "cuda"
    cfg.freeze()
    return cfg


def _recorded_classes(folder: Path) -> list[str]:
    if not (folder / CLASSES).is_file():
        raise UserError(f"{folder} has no {CLASSES}: give the class names (predict: --classes)")
    names = read_json(folder / CLASSES)
    if not isinstance(names, list):
        raise UserError(
            f"{folder / CLASSES} is not a list of class names: give them (predict: --classes)"
        )
    return names


def _named(names: list[str]) -> list[str]:
    """Return the class names; raise ``UserError`` if one is empty."""
    if not names or not all(isinstance(name, str) and words_of(name) for name in names):
        raise UserError("a class without a name was given: give one or more names, none empty")
    return names


def _trainer_class(name: str) -> type:
    from dassl.engine import TRAINER_REGISTRY

    with two_stages_on_demand():
        known = [*TRAINER_REGISTRY.registered_names()]
        if name not in known:
            raise UserError(
                f"the run's trainer {name!r} is not registered{nearest(name, known)}: import its "
                "module first, with its repository on sys.path (predict: --import MODULE, in the "
                "folder of the repository), or export the run there: class weights need no "
                f"trainer; registered: {', '.join(sorted(known)) or 'none'}"
            )
        trainer: type = TRAINER_REGISTRY.get(name)
    return trainer

"""Load a trainer's checkpoints again: for other classes, from before AnchorOPT, as a start."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...errors import UserError
from ...files.checkpoint_folder import CHILD
from ...process.user_code import error_in_one_line
from .small_trainer import HostError, build, host_errors, logits_at_test, quiet, trained_by

_REPORT = "please report this error"


class Saved(NamedTuple):
    """A checkpoint, and the values that must be there after loading.

    Attributes:
        folder: the folder with the trainer's models.
        values: trained parameters, and all values of AnchorOPT, by model and name.
    """

    folder: Path
    values: dict[str, Tensor]


def save(trainer: Any, folder: Path) -> Saved:
    """Let a trainer save its checkpoint of the first epoch."""
    with quiet():
        trainer.save_model(0, str(folder))
    state = _state(trainer)
    names = [*trained_by(trainer), *(name for name in state if CHILD in name.split("."))]
    return Saved(folder, {name: state[name].clone() for name in names})


def loads_again(
    host: type,
    with_anchoropt: type,
    alone: Saved,
    ours: Saved,
    cfg: Any,
    trained: Sequence[str],
    others: Sequence[str],
) -> str:
    """Load both checkpoints as a user does, and return the result as a sentence.

    If the plain host cannot load its checkpoint for other classes, cannot load it at all, or
    ignores ``MODEL.INIT_WEIGHTS``, the same is not required with AnchorOPT either.

    Args:
        host: the trainer.
        with_anchoropt: the same trainer with AnchorOPT.
        alone: the checkpoint of ``host``.
        ours: the checkpoint of ``with_anchoropt``.
        cfg: the configuration of both.
        trained: the class names of both checkpoints.
        others: further class names.

    Raises:
        UserError: with AnchorOPT, a lost value that the plain host does not lose.
    """
    name, classes, where = host.__name__, others, "for other classes: yes"
    new = cfg.clone()
    new.defrost()
    new.DATASET.SUBSAMPLE_CLASSES = "new"
    new.freeze()
    try:
        lost = _lost(alone, _loaded(host, new, alone, classes))
    except UserError:
        classes, new = trained, cfg
        try:
            lost = _lost(alone, _loaded(host, cfg, alone, classes))
        except HostError as error:
            assert error.__cause__ is not None
            why = error_in_one_line(error.__cause__)
            return f"not tried: {name} alone does not load its own ({why})"
        where = (
            "for the same classes: yes; for others: no, as without AnchorOPT (load_model must skip "
            "token_prefix and token_suffix)"
        )
    found = [where]
    again = _loaded(with_anchoropt, new, ours, classes)
    _require(name, "does not load its own checkpoint", _lost(ours, again), lost)
    logits = logits_at_test(again)
    if logits.shape[-1] != len(classes):
        raise UserError(
            f"{name}, loaded for {len(classes)} classes, gives logits of {logits.shape[-1]}"
        )
    again = _loaded(with_anchoropt, new, alone, classes)
    _require(name, "does not load a checkpoint of the plain host", _lost(alone, again), lost)
    found.append("of the plain host: yes")
    (path, *more) = sorted(alone.folder.rglob("model*.pth.tar*"))
    if not more:
        try:
            lost = _lost(alone, _started(host, cfg, path, trained))
        except UserError:  # also: the host loads it into a module that nothing in it fits (LASP)
            lost = list(alone.values)
        if len(lost) < len(alone.values):
            started = _started(with_anchoropt, cfg, path, trained)
            _require(name, "does not load MODEL.INIT_WEIGHTS", _lost(alone, started), lost)
            found.append("as MODEL.INIT_WEIGHTS: yes")
    return "; ".join(found)


def _loaded(trainer: type, cfg: Any, saved: Saved, classes: Sequence[str]) -> Any:
    with host_errors(f"{trainer.__name__} does not load its checkpoint: ", _REPORT):
        again = build(trainer, cfg, classes)
        with quiet():
            again.load_model(str(saved.folder), epoch=1)
    return again


def _started(trainer: type, cfg: Any, path: Path, classes: Sequence[str]) -> Any:
    new = cfg.clone()
    new.defrost()
    new.MODEL.INIT_WEIGHTS = str(path)
    new.freeze()
    with host_errors(f"{trainer.__name__} does not load MODEL.INIT_WEIGHTS: ", _REPORT):
        return build(trainer, new, classes)


def _state(trainer: Any) -> dict[str, Tensor]:
    return {
        f"{model}.{name}": value
        for model, module in trainer._models.items()
        for name, value in module.state_dict().items()
        if isinstance(value, Tensor)
    }


def _lost(saved: Saved, trainer: Any) -> list[str]:
    """Return the names of saved values that ``trainer`` lacks or holds with other numbers."""
    own = _state(trainer)
    return [
        name
        for name, value in saved.values.items()
        if name not in own or own[name].shape != value.shape or not torch.equal(own[name], value)
    ]


def _require(name: str, fault: str, lost: list[str], lost_by_host: list[str]) -> None:
    more = sorted(set(lost) - set(lost_by_host))
    if more:
        raise UserError(f"{name} with AnchorOPT {fault}: {more[0]} differs; {_REPORT}")

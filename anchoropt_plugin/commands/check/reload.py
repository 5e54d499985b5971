"""What a host has saved, loaded again: into other classes, from before AnchorOPT, as a start."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...errors import UserError
from ...process.user_code import error_in_one_line
from ...prompts.hooks import CHILD
from .small_trainer import CLASSES, HostError, build, host_errors, quiet, tested, trained_by

OTHERS = ["dog", "grey whale", "tram", "mountain path", "steam engine"]
_REPORT = "please report it"


class Saved(NamedTuple):
    """A checkpoint, and what has to be found again.

    Attributes:
        folder: that the trainer saved its models in.
        values: what was trained, and all of AnchorOPT's, by model and name.
    """

    folder: Path
    values: dict[str, Tensor]


def save(trainer: Any, folder: Path) -> Saved:
    """Let a trainer save what it holds after its first epoch."""
    with quiet():
        trainer.save_model(0, str(folder))
    held = _states(trainer)
    names = [*trained_by(trainer), *(name for name in held if CHILD in name.split("."))]
    return Saved(folder, {name: held[name].clone() for name in names})


def loads_again(host: type, with_anchoropt: type, alone: Saved, ours: Saved, cfg: Any) -> str:
    """Load both checkpoints as a user does; what was found, in words.

    A host whose own checkpoints fit their classes alone, or do not load here, or that takes no
    ``MODEL.INIT_WEIGHTS``, is held to no more with AnchorOPT.

    Args:
        host: the trainer.
        with_anchoropt: the same with AnchorOPT.
        alone: what the host has saved.
        ours: what it has saved with AnchorOPT.
        cfg: of both.

    Raises:
        UserError: with AnchorOPT it does not find what the host alone finds.
    """
    name, classes, where = host.__name__, OTHERS, "into other classes,"
    try:
        lost = _lost(alone, _loaded(host, cfg, alone, classes))
    except UserError:
        classes = CLASSES
        try:
            lost = _lost(alone, _loaded(host, cfg, alone, classes))
        except HostError as error:
            assert error.__cause__ is not None
            why = error_in_one_line(error.__cause__)
            return f"not tried: {name} alone does not load its own ({why})"
        where = (
            "into the same classes only, as without AnchorOPT (for others, load_model must leave "
            "out token_prefix and token_suffix),"
        )
    found = [where]
    again = _loaded(with_anchoropt, cfg, ours, classes)
    _require(name, "does not find its own checkpoint", _lost(ours, again), lost)
    logits = tested(again)
    if logits.shape[-1] != len(classes):
        raise UserError(f"{name}, loaded for {len(classes)} classes, gives {logits.shape[-1]}")
    again = _loaded(with_anchoropt, cfg, alone, classes)
    _require(name, "does not find a checkpoint of the host alone", _lost(alone, again), lost)
    found.append("from before AnchorOPT too")
    (path, *others) = sorted(alone.folder.rglob("model*.pth.tar*"))
    if not others:
        try:
            lost = _lost(alone, _started(host, cfg, path))
        except HostError:
            lost = list(alone.values)
        if len(lost) < len(alone.values):
            started = _started(with_anchoropt, cfg, path)
            _require(name, "does not start from MODEL.INIT_WEIGHTS", _lost(alone, started), lost)
            found.append("and as MODEL.INIT_WEIGHTS")
    return " ".join(found)


def _loaded(trainer: type, cfg: Any, saved: Saved, classes: list[str]) -> Any:
    new = cfg.clone()
    new.defrost()
    new.DATASET.SUBSAMPLE_CLASSES = "new" if classes is OTHERS else "base"
    new.freeze()
    with host_errors(f"{trainer.__name__} does not load its checkpoint: ", _REPORT):
        again = build(trainer, new, classes)
        with quiet():
            again.load_model(str(saved.folder), epoch=1)
    return again


def _started(trainer: type, cfg: Any, path: Path) -> Any:
    new = cfg.clone()
    new.defrost()
    new.MODEL.INIT_WEIGHTS = str(path)
    new.freeze()
    with host_errors(f"{trainer.__name__} does not start from MODEL.INIT_WEIGHTS: ", _REPORT):
        return build(trainer, new)


def _states(trainer: Any) -> dict[str, Tensor]:
    return {
        f"{model}.{name}": value
        for model, module in trainer._models.items()
        for name, value in module.state_dict().items()
        if isinstance(value, Tensor)
    }


def _lost(saved: Saved, trainer: Any) -> list[str]:
    """Names of what ``trainer`` has not, or has otherwise."""
    own = _states(trainer)
    return [
        name
        for name, value in saved.values.items()
        if name not in own or own[name].shape != value.shape or not torch.equal(own[name], value)
    ]


def _require(name: str, what: str, lost: list[str], by_the_host: list[str]) -> None:
    more = sorted(set(lost) - set(by_the_host))
    if more:
        raise UserError(f"{name} with AnchorOPT {what}: {more[0]} is another one; {_REPORT}")

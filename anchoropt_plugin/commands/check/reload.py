"""Load a trainer's checkpoints again: for other classes, from before AnchorOPT, as a start."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...errors import UserError
from ...files.checkpoint_folder import CHILD
from ...process.user_code import error_in_one_line
from ...prompts.class_tensors import changed_class_tensors
from .small_trainer import (
    HostError,
    build,
    host_errors,
    learners_of,
    logits_at_test,
    quiet,
    trained_by,
)

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


class Loads(NamedTuple):
    """Which checkpoints load.

    Attributes:
        text: a sentence.
        fault: why a test on other classes is wrong or refused; "" if it is right.
    """

    text: str
    fault: str = ""


def loads_again(
    host: type,
    with_anchoropt: type,
    alone: Saved,
    ours: Saved,
    cfg: Any,
    trained: Sequence[str],
    others: Sequence[str],
) -> Loads:
    """Load both checkpoints as a user does.

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
    name, classes, found, fault = host.__name__, others, ["for other classes: yes"], ""
    new = cfg.clone()
    new.defrost()
    new.DATASET.SUBSAMPLE_CLASSES = "new"
    new.freeze()
    try:
        _check_brings_no_classes(host, new, alone, trained[::-1])
        lost = _lost(alone, _loaded(host, new, alone, classes))
    except UserError as error:
        classes, new, fault = trained, cfg, str(error).removesuffix(f"; {_REPORT}")
        try:
            lost = _lost(alone, _loaded(host, cfg, alone, classes))
        except HostError as own:
            assert own.__cause__ is not None
            why = error_in_one_line(own.__cause__)
            return Loads(f"not tried: {name} alone does not load its own ({why})")
        found = ["for the same classes: yes", "for others: no, as without AnchorOPT"]
    again = _loaded(with_anchoropt, new, ours, classes)
    _require(name, "does not load its own checkpoint", _lost(ours, again), lost)
    logits = logits_at_test(again)
    if logits.shape[-1] != len(classes):
        raise UserError(
            f"{name}, loaded for {len(classes)} classes, gives logits of {logits.shape[-1]}"
        )

    def of_plain_host(what: str, load: Callable[[], Any]) -> None:
        try:
            again = load()
        except HostError:
            raise
        except UserError as refused:
            found.append(f"{what}: no ({refused})")
            return
        _require(name, f"does not load a checkpoint {what}", _lost(alone, again), lost)
        found.append(f"{what}: yes")

    of_plain_host("of the plain host", lambda: _loaded(with_anchoropt, new, alone, classes))
    (path, *more) = sorted(alone.folder.rglob("model*.pth.tar*"))
    if not more:
        try:
            lost = _lost(alone, _started(host, cfg, path, trained))
        except UserError:  # also: the host loads it into a module that nothing in it fits (LASP)
            lost = list(alone.values)
        if len(lost) < len(alone.values):
            of_plain_host(
                "as MODEL.INIT_WEIGHTS", lambda: _started(with_anchoropt, cfg, path, trained)
            )
    return Loads("; ".join(found), fault)


def _loaded(trainer: type, cfg: Any, saved: Saved, classes: Sequence[str]) -> Any:
    with host_errors(f"{trainer.__name__} does not load its checkpoint: ", _REPORT):
        again = build(trainer, cfg, classes)
        with quiet():
            again.load_model(str(saved.folder), epoch=1)
    return again


def _check_brings_no_classes(host: type, cfg: Any, saved: Saved, classes: Sequence[str]) -> None:
    """Load for ``classes``, which are others than the trained ones, but as many.

    Raises:
        UserError: the names of the class tensors that the load changes.
    """
    with host_errors(f"{host.__name__} does not load its checkpoint: ", _REPORT):
        again = build(host, cfg, classes)
        with quiet(), contextlib.ExitStack() as stack:
            learners = set(learners_of(again).values())
            changed = [stack.enter_context(changed_class_tensors(learner)) for learner in learners]
            again.load_model(str(saved.folder), epoch=1)
    brought = sorted({name for names in changed for name in names})
    if brought:
        raise UserError(f"its load_model must skip {', '.join(brought)}")


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

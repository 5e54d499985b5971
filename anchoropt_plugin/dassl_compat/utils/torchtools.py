"""Checkpoints of a training run, and counting parameters."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ...errors import UserError
from ...files import checkpoints
from ...files.atomic import atomic_write
from ...files.checkpoint_folder import BEST_MODEL, is_of_classes, last_checkpoint_name
from ...process import distributed
from ...process.randomness import restore_random_state


def save_checkpoint(
    state: Mapping[str, Any],
    save_dir: str | Path,
    is_best: bool = False,
    remove_module_from_keys: bool = True,
    model_name: str = "",
) -> None:
    """Write ``state`` to ``save_dir``, and the file's name to the text file ``checkpoint`` there.

    Args:
        state: Holds at least ``state_dict`` and ``epoch``.
        save_dir: The folder, made where it is missing.
        is_best: Also copy the file to ``model-best.pth.tar``.
        remove_module_from_keys: Strip ``module.``, which DataParallel puts before names.
        model_name: The file's name; by default ``model.pth.tar-{epoch}``.
    """
    state = dict(state)
    if remove_module_from_keys:
        state["state_dict"] = _without_module(state["state_dict"])
    if distributed.is_main():
        _write_checkpoint(state, Path(save_dir), is_best, model_name)
    # So that none looks for it before it is there.
    distributed.barrier()


def _write_checkpoint(state: dict[str, Any], folder: Path, is_best: bool, model_name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (model_name or f"model.pth.tar-{state['epoch']}")
    checkpoints.save(state, path)
    print(f"Checkpoint saved to {path}")
    with atomic_write(folder / "checkpoint") as file:
        file.write(f"{path.name}\n".encode())
    if is_best:
        with (
            path.open("rb") as source,
            atomic_write(folder / BEST_MODEL) as target,
        ):
            shutil.copyfileobj(source, target)


def load_checkpoint(fpath: str | Path) -> dict[str, Any]:
    """Return a run's checkpoint, its tensors on the CPU, without running any code from it.

    Raises:
        UserError: The file is missing, truncated or not a checkpoint of a run.
    """
    checkpoint = checkpoints.load(fpath)
    for key in ("state_dict", "epoch"):
        if key not in checkpoint:
            raise UserError(f"{fpath} has no {key!r}: give a file that a training run wrote")
    return checkpoint


def resume_from_checkpoint(
    fdir: str | Path,
    model: nn.Module,
    optimizer: Optimizer | None = None,
    scheduler: LRScheduler | None = None,
    scaler: Any = None,
    file_name: str = "",
) -> int:
    """Restore a run from a checkpoint in ``fdir``.

    Args:
        fdir: The folder.
        model, optimizer, scheduler: What is restored.
        scaler: The gradient scaler, where amp is used.
        file_name: The checkpoint; by default the one that the text file ``checkpoint`` names.

    Returns:
        The number of epochs done.

    Raises:
        UserError: A file cannot be read, or belongs to another model or other classes.
    """
    folder = Path(fdir)
    path = folder / (file_name or last_checkpoint_name(folder))
    print(f"Loading checkpoint from {path}")
    checkpoint = load_checkpoint(path)
    try:
        _check_classes(checkpoint["state_dict"], model.state_dict())
        model.load_state_dict(checkpoint["state_dict"])
        scaler = scaler if scaler is not None and scaler.is_enabled() else None
        parts = ("optimizer", optimizer), ("scheduler", scheduler), ("scaler", scaler)
        for name, part in parts:
            if part is not None and checkpoint.get(name) is not None:
                _check_kinds(checkpoint[name], part.state_dict(), name)
                part.load_state_dict(checkpoint[name])
        if optimizer is not None:
            _check_moments(optimizer)
        if "rng" in checkpoint:
            restore_random_state(checkpoint["rng"])
    except Exception as error:  # what is not as it should be fails in every way there is
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"cannot go on from {path}: {reason}; remove it, or give another output folder"
        ) from error
    print(f"Previous epoch: {checkpoint['epoch']}")
    return checkpoint["epoch"]


def _check_classes(there: Mapping[str, Tensor], here: Mapping[str, Tensor]) -> None:
    for name in sorted(filter(is_of_classes, there.keys() & here.keys())):
        one, other = there[name].float().cpu(), here[name].float().cpu()
        # As near as half precision keeps them.
        if one.shape != other.shape or not torch.allclose(one, other, rtol=1e-2, atol=1e-4):
            raise ValueError(f"its {name} is that of other classes")


def _check_kinds(value: Any, own: Any, name: str) -> None:
    """Check that what a checkpoint has of a state is of the kinds that the state itself has."""
    if isinstance(value, checkpoints.Foreign) and isinstance(own, Mapping):
        return  # a pickled scheduler stands for its state
    kinds: tuple[Any, ...] = (Mapping, (list, tuple), (int, float), Tensor, str)
    kind: Any = next((kind for kind in kinds if isinstance(own, kind)), object)
    if not isinstance(value, kind) or isinstance(value, checkpoints.Foreign):
        raise TypeError(f"{name} is a {type(value).__name__}")
    if isinstance(own, Mapping):
        for key in own.keys() & value.keys():
            _check_kinds(value[key], own[key], f"{name}: {key}")
    elif isinstance(own, (list, tuple)):
        for one, other in zip(value, own, strict=False):
            _check_kinds(one, other, name)


def _check_moments(optimizer: Optimizer) -> None:
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            fits = value is None or isinstance(value, (int, float, Tensor))
            if isinstance(value, Tensor) and value.dim():
                fits = value.shape == parameter.shape
            if not fits:
                raise TypeError(f"optimizer: {name} does not fit its parameter")


def load_pretrained_weights(model: nn.Module, weight_path: str | Path) -> None:
    """Load what fits ``model``, in name and size, from a checkpoint or a bare state dict.

    ``CLASS_BUFFERS`` stay as they are.

    Raises:
        UserError: The file cannot be read.
    """
    checkpoint = checkpoints.load(weight_path)
    weights = _without_module(checkpoint.get("state_dict", checkpoint))
    own = model.state_dict()
    fitting = {
        name: value
        for name, value in weights.items()
        if name in own
        and own[name].shape == getattr(value, "shape", None)
        and not is_of_classes(name)
    }
    if not fitting:
        warnings.warn(f"Nothing in {weight_path} fits the model by name and size", stacklevel=2)
        return
    model.load_state_dict(fitting, strict=False)
    print(f"Loaded pretrained weights from {weight_path}")
    left_out = [name for name in weights if name not in fitting]
    if left_out:
        print(f"Left out, as they do not fit in name or size: {left_out}")


def count_num_param(model: nn.Module | None = None, params: Iterable[Any] | None = None) -> int:
    """Return the number of parameters of a model, or in a list of tensors or parameter groups."""
    if model is not None:
        return sum(parameter.numel() for parameter in model.parameters())
    items = (item["params"] if isinstance(item, dict) else item for item in params or ())
    return sum(
        item.numel() if isinstance(item, Tensor) else count_num_param(params=item) for item in items
    )


def _without_module(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    return {str(name).removeprefix("module."): value for name, value in state_dict.items()}

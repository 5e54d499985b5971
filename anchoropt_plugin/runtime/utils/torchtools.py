"""Checkpoints of a training run, and counting parameters."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ... import checkpoints
from ...errors import UserError
from .tools import restore_random_state


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
    folder = Path(save_dir)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (model_name or f"model.pth.tar-{state['epoch']}")
    checkpoints.save(state, path)
    print(f"Checkpoint saved to {path}")
    with checkpoints.atomic_write(folder / "checkpoint") as file:
        file.write(f"{path.name}\n".encode())
    if is_best:
        with (
            path.open("rb") as source,
            checkpoints.atomic_write(folder / "model-best.pth.tar") as target,
        ):
            shutil.copyfileobj(source, target)


def load_checkpoint(fpath: str | Path) -> dict[str, Any]:
    """Return a checkpoint, its tensors on the CPU, without running any code from it.

    Raises:
        UserError: The file is missing, truncated or not a checkpoint.
    """
    return checkpoints.load(fpath)


def resume_from_checkpoint(
    fdir: str | Path,
    model: nn.Module,
    optimizer: Optimizer | None = None,
    scheduler: LRScheduler | None = None,
) -> int:
    """Restore a run from the checkpoint that the text file ``checkpoint`` in ``fdir`` names.

    Returns:
        The number of epochs done.

    Raises:
        UserError: A file cannot be read, or belongs to another model.
    """
    folder = Path(fdir)
    path = folder / (folder / "checkpoint").read_text(encoding="utf-8").strip()
    print(f"Loading checkpoint from {path}")
    checkpoint = load_checkpoint(path)
    try:
        model.load_state_dict(checkpoint["state_dict"])
        if optimizer is not None and checkpoint.get("optimizer") is not None:
            optimizer.load_state_dict(checkpoint["optimizer"])
        if scheduler is not None and checkpoint.get("scheduler") is not None:
            scheduler.load_state_dict(checkpoint["scheduler"])
        epoch = int(checkpoint["epoch"])
    except (KeyError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"cannot go on from {path}: {reason}; remove it, or give another output folder"
        ) from error
    if "rng" in checkpoint:
        restore_random_state(checkpoint["rng"])
    print(f"Previous epoch: {epoch}")
    return epoch


def load_pretrained_weights(model: nn.Module, weight_path: str | Path) -> None:
    """Load what fits ``model``, in name and size, from a checkpoint or a bare state dict.

    Raises:
        UserError: The file cannot be read.
    """
    checkpoint = load_checkpoint(weight_path)
    weights = _without_module(checkpoint.get("state_dict", checkpoint))
    own = model.state_dict()
    fitting = {
        name: value
        for name, value in weights.items()
        if name in own and own[name].shape == getattr(value, "shape", None)
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
    return {name.removeprefix("module."): value for name, value in state_dict.items()}

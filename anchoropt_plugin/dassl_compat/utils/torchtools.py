"""Save, load and resume the checkpoints of a run; count parameters."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ...config.same_run import check_of_folder
from ...errors import UserError
from ...files import checkpoints
from ...files.atomic import write_text
from ...files.checkpoint_folder import (
    BEST_MODEL,
    is_of_classes,
    last_checkpoint_name,
    tensor_of_other_classes,
    without_module,
)
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
        state: a dict with at least ``state_dict`` and ``epoch``.
        save_dir: the folder; a missing folder is created.
        is_best: whether to copy the file to ``model-best.pth.tar`` too.
        remove_module_from_keys: whether to strip DataParallel's prefix ``module.`` from names.
        model_name: the file's name; by default ``model.pth.tar-{epoch}``.
    """
    state = dict(state)
    if remove_module_from_keys:
        state["state_dict"] = without_module(state["state_dict"])
    if distributed.is_main():
        folder = Path(save_dir)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / (model_name or f"model.pth.tar-{state['epoch']}")
        checkpoints.save(state, path)
        print(f"Checkpoint saved to {path}")
        write_text(folder / "checkpoint", f"{path.name}\n")
        if is_best:
            checkpoints.save(state, folder / BEST_MODEL)
    # Otherwise another process might look for the file before it exists.
    distributed.barrier()


def load_checkpoint(fpath: str | Path) -> dict[str, Any]:
    """Return a run's checkpoint, with tensors on the CPU, without running code from the file.

    Raises:
        UserError: a missing or truncated file, a file that is not a run's checkpoint, or the
            checkpoint of another run than that of its folder.
    """
    checkpoint = checkpoints.load(fpath)
    for key in ("state_dict", "epoch"):
        if key not in checkpoint:
            raise UserError(f"{fpath} has no {key!r}: give a checkpoint that a run wrote")
    check_of_folder(Path(fpath), checkpoint.get("run"))
    return checkpoint


def resume_from_checkpoint(
    fdir: str | Path,
    model: nn.Module,
    optimizer: Optimizer | None = None,
    scheduler: LRScheduler | None = None,
    scaler: Any = None,
    file_name: str = "",
    extend: bool = False,
) -> int:
    """Restore a run from a checkpoint in ``fdir``.

    Args:
        fdir: the folder.
        model, optimizer, scheduler: the objects to restore.
        scaler: the gradient scaler of amp, if any.
        file_name: the checkpoint's name; by default the name in the text file ``checkpoint``.
        extend: whether the learning rates go on as ``scheduler`` has them, not as in the
            checkpoint, whose run had fewer epochs.

    Returns:
        The number of finished epochs.

    Raises:
        UserError: an unreadable file, or a checkpoint of another model or other classes.
    """
    folder = Path(fdir)
    path = folder / (file_name or last_checkpoint_name(folder))
    print(f"Loading checkpoint from {path}")
    checkpoint = load_checkpoint(path)
    try:
        check_classes(checkpoint["state_dict"], model)
        model.load_state_dict(checkpoint["state_dict"])
        scaler = scaler if scaler is not None and scaler.is_enabled() else None
        rates = []
        if extend and scheduler is not None:
            rates, scheduler = _rates_after(scheduler, checkpoint["epoch"]), None
        parts = ("optimizer", optimizer), ("scheduler", scheduler), ("scaler", scaler)
        for name, part in parts:
            if part is not None and checkpoint.get(name) is not None:
                _check_kinds(checkpoint[name], part.state_dict(), name)
                part.load_state_dict(checkpoint[name])
        if optimizer is not None:
            for group, rate in zip(optimizer.param_groups, rates, strict=False):
                group["lr"] = rate
            _check_moments(optimizer)
        if "rng" in checkpoint:
            restore_random_state(checkpoint["rng"])
    except Exception as error:  # a broken state may raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"cannot resume from {path}: {reason}; remove it, or give another output folder"
        ) from error
    print(f"Previous epoch: {checkpoint['epoch']}")
    return checkpoint["epoch"]


def _rates_after(scheduler: LRScheduler, epochs: int) -> list[float]:
    """Step a new scheduler over some epochs, and return the learning rate of each group."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the optimiser has not stepped
        for _ in range(epochs):
            scheduler.step()
    return [group["lr"] for group in scheduler.optimizer.param_groups]


def check_classes(state: Mapping[str, Tensor], model: nn.Module) -> None:
    """Check that the class buffers of a checkpoint, if it has some, are those of ``model``.

    Raises:
        ValueError: they belong to other classes.
    """
    name = tensor_of_other_classes(state, model.state_dict())
    if name:
        raise ValueError(f"its {name} belongs to other classes")


def _check_kinds(value: Any, own: Any, name: str) -> None:
    """Check that a state in a checkpoint has the same types as the object's own state."""
    if isinstance(value, checkpoints.Foreign) and isinstance(own, Mapping):
        return  # a pickled scheduler in place of its state
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
    """Load all tensors that fit ``model`` by name and size from a checkpoint or state dict.

    ``CLASS_BUFFERS`` stay unchanged.

    Raises:
        UserError: an unreadable file, or a file of which nothing fits.
    """
    checkpoint = checkpoints.load(weight_path)
    weights = without_module(checkpoint.get("state_dict", checkpoint))
    own = model.state_dict()
    fitting = {
        name: value
        for name, value in weights.items()
        if name in own
        and own[name].shape == getattr(value, "shape", None)
        and not is_of_classes(name)
    }
    if not fitting:
        raise UserError(
            f"nothing in {weight_path} fits the model by name and size: give a checkpoint of the "
            "same trainer, context length and backbone"
        )
    model.load_state_dict(fitting, strict=False)
    print(f"Loaded pretrained weights from {weight_path}")
    skipped = [name for name in weights if name not in fitting]
    if skipped:
        print(f"Skipped, as names or sizes do not fit: {skipped}")


def count_num_param(model: nn.Module | None = None, params: Iterable[Any] | None = None) -> int:
    """Return the number of values in a model, or in a list of tensors or parameter groups."""
    if model is not None:
        return sum(parameter.numel() for parameter in model.parameters())
    items = (item["params"] if isinstance(item, dict) else item for item in params or ())
    return sum(
        item.numel() if isinstance(item, Tensor) else count_num_param(params=item) for item in items
    )


def parameters_in_words(trained: Iterable[Tensor], everything: Iterable[Tensor]) -> str:
    """Return how many parameters are trained, as peft's ``print_trainable_parameters`` prints it.

    Args:
        trained: the parameters of the optimisers.
        everything: all parameters; one that is there twice counts once.

    >>> import torch
    >>> ctx, others = torch.zeros(16, 512), torch.zeros(1000, 1000)
    >>> parameters_in_words([ctx], [ctx, others, ctx])
    'trainable params: 8,192 || all params: 1,008,192 || trainable%: 0.8125'
    """
    some, every = (
        sum({id(tensor): tensor.numel() for tensor in tensors}.values())
        for tensors in (trained, everything)
    )
    share = 100 * some / max(every, 1)
    return f"trainable params: {some:,} || all params: {every:,} || trainable%: {share:.4f}"

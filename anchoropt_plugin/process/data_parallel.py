"""Refuse ``nn.DataParallel`` on several GPUs: use torchrun instead."""

from __future__ import annotations

from torch import nn

from ..errors import UserError
from .distributed import is_launched


def without_data_parallel(model: nn.Module) -> nn.Module:
    """Return the module inside ``DataParallel`` if torchrun started this process.

    Under torchrun each process has one GPU, so the wrapper has nothing to do.
    """
    return model.module if isinstance(model, nn.DataParallel) and is_launched() else model


def refuse_data_parallel(model: nn.Module, owner: str) -> None:
    """Check that ``model`` does not run in threads on several GPUs.

    Args:
        model: the model to search for ``DataParallel``.
        owner: the name of the class that built the model, for the message.

    Raises:
        UserError: a ``DataParallel`` on several GPUs. Its threads see neither the objective of
            AnchorOPT nor the fast text branch.
    """
    for module in model.modules():
        if isinstance(module, nn.DataParallel) and len(module.device_ids) > 1:
            n_devices = len(module.device_ids)
            raise UserError(
                f"{owner} wraps {type(module.module).__name__} in nn.DataParallel, in whose "
                "threads the plug-in does not work: replace python by "
                f"torchrun --nproc_per_node={n_devices}, or set CUDA_VISIBLE_DEVICES=0 to use "
                "one GPU"
            )

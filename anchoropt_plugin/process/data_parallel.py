"""``nn.DataParallel`` is refused on several GPUs: torchrun takes its place."""

from __future__ import annotations

from torch import nn

from ..errors import UserError
from .distributed import is_launched


def without_data_parallel(model: nn.Module) -> nn.Module:
    """The module that a host put into ``DataParallel``: a process of several has one GPU."""
    return model.module if isinstance(model, nn.DataParallel) and is_launched() else model


def refuse_data_parallel(model: nn.Module, what: str) -> None:
    """Check that ``model`` does not run in threads on several GPUs.

    Raises:
        UserError: it does; neither the objective of AnchorOPT nor the fast text branch is there.
    """
    for module in model.modules():
        if isinstance(module, nn.DataParallel) and len(module.device_ids) > 1:
            n_devices = len(module.device_ids)
            raise UserError(
                f"{what} wraps {type(module.module).__name__} in nn.DataParallel, in whose threads "
                "the plug-in does not work: run it with "
                f"torchrun --nproc_per_node={n_devices} in place of python, or set "
                "CUDA_VISIBLE_DEVICES=0 for one GPU"
            )

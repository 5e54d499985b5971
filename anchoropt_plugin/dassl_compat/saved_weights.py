"""Whether a training tests the weights of its last checkpoint: a host may average them after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..files.checkpoint_folder import last_checkpoint_name
from .utils.torchtools import load_checkpoint

CHANGED = "changed_after_checkpoint"
"""Key of ``results.json``: the test after a training was one of weights that no checkpoint has."""


def are_saved(trainer: Any) -> bool:
    """Whether the models of a trainer have the weights of their last checkpoints, if any.

    Args:
        trainer: with ``_models``, ``get_model_names`` and ``output_dir``, at the end of a training.
    """
    for name in trainer.get_model_names():
        folder = Path(trainer.output_dir, name)
        if not Path(folder, "checkpoint").is_file():
            continue
        saved = load_checkpoint(folder / last_checkpoint_name(folder))["state_dict"]
        own = trainer._models[name].state_dict()
        for there, here in ((saved[key], own[key].cpu()) for key in saved.keys() & own.keys()):
            # A host may save other precisions, or a part.
            alike = (there.dtype, there.shape) == (here.dtype, here.shape)
            if alike and not torch.equal(there, here):
                return False
    return True

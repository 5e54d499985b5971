"""The data sets; ``register`` registers them in ``DATASET_REGISTRY``."""

from __future__ import annotations

import importlib
from typing import Any

from .embedded_sets import Digits, Shapes
from .image_folder import ImageFolder
from .public_sets import PUBLIC_SETS
from .split_dataset import SplitDataset
from .splits import Split

__all__ = ["DATA_SETS", "Digits", "ImageFolder", "Shapes", "Split", "SplitDataset", "register"]

DATA_SETS: dict[str, Any] = {one.__name__: one for one in (Digits, Shapes, ImageFolder)}
DATA_SETS |= PUBLIC_SETS
"""The classes by ``DATASET.NAME``."""


def register() -> None:
    """Register all data sets whose names are free."""
    registry: Any = importlib.import_module("dassl.data.datasets").DATASET_REGISTRY
    for name, data_set in DATA_SETS.items():
        if name not in registry.registered_names():
            registry.register()(data_set)

"""The registry of data sets."""

from __future__ import annotations

from typing import Any

from yacs.config import CfgNode

from ...utils.registry import Registry

DATASET_REGISTRY = Registry("DATASET")


def build_dataset(cfg: CfgNode) -> Any:
    """Return the data set registered as ``cfg.DATASET.NAME``, built with ``cfg``.

    Raises:
        UserError: an unknown name; the message suggests the nearest one.
    """
    return DATASET_REGISTRY.chosen(cfg, "DATASET.NAME")(cfg)

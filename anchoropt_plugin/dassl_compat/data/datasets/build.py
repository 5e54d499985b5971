"""The registry of data sets."""

from __future__ import annotations

from typing import Any

from yacs.config import CfgNode

from ...utils.registry import Registry, check_availability

DATASET_REGISTRY = Registry("DATASET")


def build_dataset(cfg: CfgNode) -> Any:
    """Return the data set registered as ``cfg.DATASET.NAME``, built with ``cfg``.

    Raises:
        UserError: an unknown name; the message suggests the nearest one.
    """
    check_availability(cfg.DATASET.NAME, DATASET_REGISTRY.registered_names(), "DATASET.NAME")
    if cfg.VERBOSE:
        print(f"Loading dataset: {cfg.DATASET.NAME}")
    return DATASET_REGISTRY.get(cfg.DATASET.NAME)(cfg)

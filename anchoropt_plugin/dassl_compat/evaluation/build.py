"""The registry of evaluators."""

from __future__ import annotations

from typing import Any

from yacs.config import CfgNode

from ..utils.registry import Registry, check_availability

EVALUATOR_REGISTRY = Registry("EVALUATOR")


def build_evaluator(cfg: CfgNode, **kwargs: Any) -> Any:
    """Return the evaluator registered as ``cfg.TEST.EVALUATOR``.

    Raises:
        UserError: an unknown name; the message suggests the nearest one.
    """
    check_availability(cfg.TEST.EVALUATOR, EVALUATOR_REGISTRY.registered_names(), "TEST.EVALUATOR")
    if cfg.VERBOSE:
        print(f"Loading evaluator: {cfg.TEST.EVALUATOR}")
    return EVALUATOR_REGISTRY.get(cfg.TEST.EVALUATOR)(cfg, **kwargs)

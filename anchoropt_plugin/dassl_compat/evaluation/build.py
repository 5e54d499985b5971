"""The registry of evaluators."""

from __future__ import annotations

from typing import Any

from yacs.config import CfgNode

from ..utils.registry import Registry

EVALUATOR_REGISTRY = Registry("EVALUATOR")


def build_evaluator(cfg: CfgNode, **kwargs: Any) -> Any:
    """Return the evaluator registered as ``cfg.TEST.EVALUATOR``.

    Raises:
        UserError: an unknown name; the message suggests the nearest one.
    """
    return EVALUATOR_REGISTRY.chosen(cfg, "TEST.EVALUATOR")(cfg, **kwargs)

"""Registries of image networks: hosts' modules import them. CLIP's hosts register none."""

from __future__ import annotations

from typing import Any

from ..utils.registry import Registry, check_availability

BACKBONE_REGISTRY, HEAD_REGISTRY = Registry("BACKBONE"), Registry("HEAD")

__all__ = ["BACKBONE_REGISTRY", "HEAD_REGISTRY", "build_backbone", "build_head"]


def build_backbone(name: str, verbose: bool = True, **arguments: Any) -> Any:
    """Return the backbone registered as ``name``.

    Raises:
        UserError: an unknown name.
    """
    return _built(BACKBONE_REGISTRY, name, verbose, arguments)


def build_head(name: str, verbose: bool = True, **arguments: Any) -> Any:
    """Return the head registered as ``name``.

    Raises:
        UserError: an unknown name.
    """
    return _built(HEAD_REGISTRY, name, verbose, arguments)


def _built(registry: Registry, name: str, verbose: bool, arguments: dict[str, Any]) -> Any:
    check_availability(name, registry.registered_names())
    if verbose:
        print(f"Network: {name}")
    return registry.get(name)(**arguments)

"""Transforms from a PIL image to the input tensor of a model."""

from __future__ import annotations

from .transforms import INTERPOLATION_MODES, build_transform, interpolation_mode

__all__ = ["INTERPOLATION_MODES", "build_transform", "interpolation_mode"]

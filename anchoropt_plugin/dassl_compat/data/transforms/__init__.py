"""From a picture to the tensor a model takes."""

from __future__ import annotations

from .transforms import INTERPOLATION_MODES, build_transform, interpolation_mode

__all__ = ["INTERPOLATION_MODES", "build_transform", "interpolation_mode"]

"""Data sets, transforms and loaders."""

from __future__ import annotations

from .data_manager import DataManager, DatasetWrapper

__all__ = ["DataManager", "DatasetWrapper"]

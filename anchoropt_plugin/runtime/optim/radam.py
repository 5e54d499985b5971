"""Under Dassl's name for it: the rectified Adam of PyTorch."""

from __future__ import annotations

from torch.optim import RAdam

__all__ = ["RAdam"]

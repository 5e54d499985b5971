"""Where public code looks for the optimiser that torch has itself by now."""

from torch.optim import RAdam

__all__ = ["RAdam"]

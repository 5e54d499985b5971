"""``RAdam`` in the place where public code imports it from; torch has the optimiser itself."""

from torch.optim import RAdam

__all__ = ["RAdam"]

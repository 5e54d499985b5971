"""Learning-rate schedules, stepped once an epoch, with an optional warm-up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR, StepLR
from yacs.config import CfgNode

from ...errors import UserError
from ...files.checkpoints import Foreign
from ..utils.registry import check_availability


class WarmupScheduler(LRScheduler):
    """A schedule that delays ``successor`` by ``warmup_epoch`` epochs.

    The first epoch after the warm-up uses the base learning rate. The successor takes its first
    step one epoch later: in epoch ``e`` it has taken ``e - warmup_epoch`` steps.
    """

    def __init__(self, optimizer: Optimizer, successor: LRScheduler, warmup_epoch: int) -> None:
        self.successor = successor
        self.warmup_epoch = warmup_epoch
        super().__init__(optimizer)

    def warmup_lr(self, base_lr: float) -> float:
        """Return the learning rate of the current warm-up epoch."""
        raise NotImplementedError

    def get_lr(self) -> list[Any]:
        """Return the learning rate of each parameter group."""
        if self.last_epoch >= self.warmup_epoch:
            return self.successor.get_last_lr()
        return [self.warmup_lr(base_lr) for base_lr in self.base_lrs]  # type: ignore[arg-type]

    def step(self, epoch: int | None = None) -> None:
        """Advance to the next epoch."""
        if self.last_epoch >= self.warmup_epoch:
            self.successor.step(epoch)
            self._last_lr = self.successor.get_last_lr()
        else:
            super().step(epoch)

    # Not super(): an installed Dassl's scheduler, whose class is another, gets both methods.
    def state_dict(self) -> dict[str, Any]:
        """Return the state, including the successor's, as plain data."""
        return {**LRScheduler.state_dict(self), "successor": self.successor.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state, including the successor's.

        Published checkpoints hold the successor itself, pickled. Only the attributes are restored
        from there: the pickled object would step an optimiser of its own.
        """
        successor = state_dict["successor"]
        if isinstance(successor, Foreign):
            print("The checkpoint holds a pickled LR scheduler: only its numbers are restored")
            attributes = successor.state if isinstance(successor.state, dict) else {}
            successor = {
                name: attributes[name]
                for name in self.successor.state_dict()
                if name in attributes and not isinstance(attributes[name], Foreign)
            }
        self.successor.load_state_dict(successor)
        LRScheduler.load_state_dict(self, {**state_dict, "successor": self.successor})


class ConstantWarmupScheduler(WarmupScheduler):
    """A warm-up with the constant learning rate ``cons_lr``."""

    def __init__(
        self, optimizer: Optimizer, successor: LRScheduler, warmup_epoch: int, cons_lr: float
    ) -> None:
        self.cons_lr = cons_lr
        super().__init__(optimizer, successor, warmup_epoch)

    def warmup_lr(self, base_lr: float) -> float:
        return self.cons_lr


class LinearWarmupScheduler(WarmupScheduler):
    """A warm-up with ``min_lr`` in epoch 0, then ``epoch / warmup_epoch`` times the base rate."""

    def __init__(
        self, optimizer: Optimizer, successor: LRScheduler, warmup_epoch: int, min_lr: float
    ) -> None:
        self.min_lr = min_lr
        super().__init__(optimizer, successor, warmup_epoch)

    def warmup_lr(self, base_lr: float) -> float:
        if self.last_epoch == 0:
            return self.min_lr
        return base_lr * self.last_epoch / self.warmup_epoch


def build_lr_scheduler(optimizer: Optimizer, optim_cfg: CfgNode) -> LRScheduler:
    """Return the schedule that ``optim_cfg.LR_SCHEDULER`` names, after a warm-up if configured.

    Args:
        optimizer: the optimiser whose learning rate is scheduled.
        optim_cfg: the section ``OPTIM``.

    Raises:
        UserError: an unknown name, or an invalid step size.
    """
    check_availability(optim_cfg.LR_SCHEDULER, _SCHEDULES, "OPTIM.LR_SCHEDULER")
    scheduler = _SCHEDULES[optim_cfg.LR_SCHEDULER](optimizer, optim_cfg)
    warmup = optim_cfg.WARMUP_EPOCH
    if warmup <= 0:
        return scheduler
    if not optim_cfg.WARMUP_RECOUNT:
        scheduler.last_epoch = warmup
    check_availability(optim_cfg.WARMUP_TYPE, ("constant", "linear"), "OPTIM.WARMUP_TYPE")
    if optim_cfg.WARMUP_TYPE == "constant":
        return ConstantWarmupScheduler(optimizer, scheduler, warmup, optim_cfg.WARMUP_CONS_LR)
    return LinearWarmupScheduler(optimizer, scheduler, warmup, optim_cfg.WARMUP_MIN_LR)


def _single_step(optimizer: Optimizer, optim_cfg: CfgNode) -> LRScheduler:
    size = optim_cfg.STEPSIZE
    size = size[-1] if isinstance(size, (list, tuple)) else size
    if not isinstance(size, int):
        raise UserError(f"OPTIM.STEPSIZE of single_step is {size!r}, but must be an int")
    return StepLR(optimizer, size if size > 0 else optim_cfg.MAX_EPOCH, gamma=optim_cfg.GAMMA)


_SCHEDULES: dict[str, Callable[[Optimizer, CfgNode], LRScheduler]] = {
    "single_step": _single_step,
    "multi_step": lambda optimizer, cfg: MultiStepLR(optimizer, cfg.STEPSIZE, gamma=cfg.GAMMA),
    "cosine": lambda optimizer, cfg: CosineAnnealingLR(optimizer, cfg.MAX_EPOCH),
}

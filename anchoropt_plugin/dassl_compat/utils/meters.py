"""Running averages of the values that a training loop reports."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from torch import Tensor


class AverageMeter:
    """The last value and the average of a series.

    Args:
        ema: whether to average exponentially, nine parts old to one part new.

    >>> meter = AverageMeter()
    >>> meter.update(1.0); meter.update(4.0, n=2)
    >>> meter.val, meter.avg
    (4.0, 3.0)
    """

    def __init__(self, ema: bool = False) -> None:
        self.ema = ema
        self.reset()

    def reset(self) -> None:
        """Forget the series."""
        self.val = self.avg = self.sum = 0.0
        self.count = 0

    def update(self, val: float | Tensor, n: int = 1) -> None:
        """Add ``val``, counted ``n`` times."""
        self.val = val.item() if isinstance(val, Tensor) else val
        self.sum += self.val * n
        self.count += n
        self.avg = 0.9 * self.avg + 0.1 * self.val if self.ema else self.sum / self.count


class MetricMeter:
    """One :class:`AverageMeter` for each name, printed on one line.

    >>> meter = MetricMeter()
    >>> meter.update({"loss": 2.0}); meter.update({"loss": 1.0})
    >>> print(meter)
    loss 1.0000 (1.5000)
    """

    def __init__(self, delimiter: str = " ") -> None:
        self.meters: defaultdict[str, AverageMeter] = defaultdict(AverageMeter)
        self.delimiter = delimiter

    def update(self, input_dict: Mapping[str, float | Tensor] | None) -> None:
        """Add a value for each name; ``None`` adds nothing."""
        for name, value in (input_dict or {}).items():
            self.meters[name].update(value)

    def __str__(self) -> str:
        return self.delimiter.join(
            f"{name} {meter.val:.4f} ({meter.avg:.4f})" for name, meter in self.meters.items()
        )

"""The objective of stage 2: cross-entropy, and distillation from the averaged logits.

Every host computes its loss with ``F.cross_entropy``, which ``PromptLoss`` lets a function replace.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

HOTTEST = 100.0
"""The highest temperature of the distillation: above it, float32 rounds away what T² multiplies."""


def average(prompt_logits: Tensor, anchor_logits: Tensor) -> Tensor:
    """Return the mean of both logits (B, C) in float32: the teacher, and the vote on new classes.

    >>> import torch
    >>> average(torch.tensor([[1.0, 3.0]]), torch.tensor([[3.0, 1.0]]))
    tensor([[2., 2.]])
    """
    return (prompt_logits.float() + anchor_logits.float()) / 2


def to_float32(loss: Tensor) -> Tensor:
    """Return a host's loss in float32 at least: the largest number in half precision is 65504.

    >>> import torch
    >>> (1000 * to_float32(torch.tensor(100.0).half())).item()
    100000.0
    """
    return loss.to(torch.promote_types(loss.dtype, torch.float32))


def distillation(
    prompt_logits: Tensor, anchor_logits: Tensor, temperature: float = 1.0, reduction: str = "mean"
) -> Tensor:
    """Return T² · KL(softmax(ens / T) ‖ softmax(l_n / T)); ens, the averaged logits, is detached.

    The KL is summed over batch and classes and divided by their product, as in the released code:
    its weight depends on the number of classes.

    Args:
        prompt_logits: l_n, (B, C), finite: a class that is masked with −inf gives NaN.
        anchor_logits: l_a, (B, C).
        temperature: 0 < T ≤ ``HOTTEST``.
        reduction: as of ``F.cross_entropy``: the mean over images, their sum, or each image's own
            value ("none").

    Returns:
        In float32, a scalar, or (B,) for "none"; 0 if both logits are equal.

    Raises:
        ValueError: the shapes differ or are not (B, C), T is out of its range, or an unknown
            reduction.

    >>> import torch
    >>> logits = torch.tensor([[1.0, 2.0, 3.0]])
    >>> distillation(logits, logits, 2.0).item()
    0.0
    """
    if prompt_logits.shape != anchor_logits.shape or prompt_logits.dim() != 2:
        raise ValueError(
            f"prompt logits {tuple(prompt_logits.shape)} and anchor logits "
            f"{tuple(anchor_logits.shape)}: expected both to be (B, C)"
        )
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"the reduction is {reduction!r}: expected 'mean', 'sum' or 'none'")
    if not 0 < temperature <= HOTTEST:
        raise ValueError(f"the temperature is {temperature}: expected 0 < T ≤ {HOTTEST}")
    teacher = average(prompt_logits, anchor_logits).detach() / temperature
    student = prompt_logits.float() / temperature
    divergence = F.kl_div(
        student.log_softmax(-1),
        teacher.log_softmax(-1),
        reduction="none" if reduction == "none" else "sum",
        log_target=True,
    )
    if reduction == "none":
        divergence = divergence.sum(-1)
    n = prompt_logits.numel() if reduction == "mean" else prompt_logits.shape[-1]
    return temperature**2 * divergence / n


class CrossEntropy(NamedTuple):
    """A call of ``F.cross_entropy``.

    Attributes:
        value: the loss: a scalar, or one value for each row of the logits.
        logits: its first argument.
        targets: its second argument.
        reduction: "mean", "sum" or "none".
    """

    value: Tensor
    logits: Tensor
    targets: Tensor
    reduction: str

    @classmethod
    def of(cls, value: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> CrossEntropy:
        """Read a call with these arguments that returned ``value``.

        >>> logits = torch.zeros(2, 3)
        >>> CrossEntropy.of(torch.zeros(2), (logits, None), {"reduction": "none"}).reduction
        'none'
        """
        call = _SIGNATURE.bind(*args, **kwargs)
        call.apply_defaults()
        given = call.arguments
        is_sum = given["reduction"] == "sum" or given["size_average"] is False  # its older name
        reduction = "none" if value.dim() else "sum" if is_sum else "mean"
        return cls(value, given["input"], given["target"], reduction)


_SIGNATURE = inspect.signature(F.cross_entropy)


class PromptLoss(TorchFunctionMode):
    """Inside the context manager, replace the results of ``F.cross_entropy``.

    Args:
        replace: maps a ``CrossEntropy`` to the loss that replaces its value.

    >>> import torch
    >>> with PromptLoss(lambda seen: seen.value * len(seen.logits)):
    ...     loss = F.cross_entropy(torch.zeros(3, 2), torch.tensor([0, 1, 1]))
    >>> round((loss / F.cross_entropy(torch.zeros(1, 2), torch.tensor([0]))).item())
    3
    """

    def __init__(self, replace: Callable[[CrossEntropy], Tensor]) -> None:
        super().__init__()
        self.replace = replace

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is not F.cross_entropy:
            return out
        return self.replace(CrossEntropy.of(out, args, kwargs or {}))

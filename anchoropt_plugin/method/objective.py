"""The objective of stage 2: cross-entropy, and distillation from the averaged logits.

Every host computes its loss with ``F.cross_entropy``. There ``PromptLoss`` replaces the loss of the
prompt's logits by AnchorOPT's objective; further losses of the host stay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def average(prompt_logits: Tensor, anchor_logits: Tensor) -> Tensor:
    """Return the mean of both logits (B, C) in float32: the teacher, and the vote on new classes.

    >>> import torch
    >>> average(torch.tensor([[1.0, 3.0]]), torch.tensor([[3.0, 1.0]]))
    tensor([[2., 2.]])
    """
    return (prompt_logits.float() + anchor_logits.float()) / 2


def as_logits(output: Tensor) -> Tensor:
    """Turn probabilities (B, C) into logits; logits are returned as they are.

    >>> import torch
    >>> as_logits(torch.tensor([[1.0, 3.0]]).softmax(-1)).diff().round()
    tensor([[2.]])
    >>> as_logits(torch.tensor([[1.0, 3.0]]))
    tensor([[1., 3.]])
    """
    full = output.float()
    tolerance = 1e-5 if output.dtype in (torch.float32, torch.float64) else 1e-2
    sums_to_one = (full.sum(-1) - 1).abs() <= tolerance
    are_probabilities = (full >= 0).all() & sums_to_one.all()
    # Not by an `if`, which would wait for a GPU.
    return torch.where(are_probabilities, full.clamp_min(torch.finfo(full.dtype).tiny).log(), full)


def to_float32(loss: Tensor) -> Tensor:
    """Return a host's loss in float32 at least: the largest number in half precision is 65504.

    >>> import torch
    >>> (1000 * to_float32(torch.tensor(100.0).half())).item()
    100000.0
    """
    return loss.to(torch.promote_types(loss.dtype, torch.float32))


def distillation(prompt_logits: Tensor, anchor_logits: Tensor, temperature: float) -> Tensor:
    """Return T² · KL(softmax(ens / T) ‖ softmax(l_n / T)); ens, the averaged logits, is detached.

    The KL is summed over batch and classes and divided by their product, as in the released code:
    its weight depends on the number of classes.

    Args:
        prompt_logits: l_n, (B, C).
        anchor_logits: l_a, (B, C).
        temperature: T > 0.

    Returns:
        A scalar in float32; 0 if both logits are equal.

    Raises:
        ValueError: the shapes differ.

    >>> import torch
    >>> logits = torch.tensor([[1.0, 2.0, 3.0]])
    >>> distillation(logits, logits, 2.0).item()
    0.0
    """
    if prompt_logits.shape != anchor_logits.shape:
        raise ValueError(
            f"prompt logits {tuple(prompt_logits.shape)} and anchor logits "
            f"{tuple(anchor_logits.shape)}: expected both to be (B, C)"
        )
    teacher = average(prompt_logits, anchor_logits).detach() / temperature
    student = prompt_logits.float() / temperature
    divergence = F.kl_div(
        student.log_softmax(-1), teacher.log_softmax(-1), reduction="sum", log_target=True
    )
    return temperature**2 * divergence / prompt_logits.numel()


class PromptLoss(TorchFunctionMode):
    """Inside the context manager, replace the cross-entropies of the prompt's logits.

    Other cross-entropies of the host, such as that of DePT's second head, are multiplied by
    ``weight``, so that the host's balance between its losses stays.

    Args:
        replace: maps (cross-entropy, logits (B, C)) to the loss that replaces it.
        is_prompts: whether logits are the prompt's.
        weight: factor of all other cross-entropies.

    Attributes:
        replaced: whether a cross-entropy was replaced.

    >>> import torch
    >>> with PromptLoss(lambda loss, logits: loss * 10, lambda logits: len(logits) == 1) as mode:
    ...     loss = F.cross_entropy(torch.zeros(1, 2), torch.tensor([0]))
    ...     other = F.cross_entropy(torch.zeros(3, 2), torch.tensor([0, 1, 1]))
    >>> round(loss.item() / other.item()), mode.replaced
    (10, True)
    """

    def __init__(
        self,
        replace: Callable[[Tensor, Tensor], Tensor],
        is_prompts: Callable[[Tensor], bool],
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.replace = replace
        self.is_prompts = is_prompts
        self.weight = weight
        self.replaced = False

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
        logits = args[0] if args else (kwargs or {})["input"]
        if not self.is_prompts(logits):
            return self.weight * to_float32(out)
        self.replaced = True
        return self.replace(out, logits)

"""The objective of stage 2: cross-entropy, and distillation from the averaged logits.

The host's loss, wherever it is computed, goes through ``F.cross_entropy``; ``PromptLoss`` puts
AnchorOPT's in its place there, so that a host's further losses stay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def average(prompt_logits: Tensor, anchor_logits: Tensor) -> Tensor:
    """The mean of both logits (B, C), in float32: the teacher in training, the vote on new classes.

    >>> import torch
    >>> average(torch.tensor([[1.0, 3.0]]), torch.tensor([[3.0, 1.0]]))
    tensor([[2., 2.]])
    """
    return (prompt_logits.float() + anchor_logits.float()) / 2


def as_logits(output: Tensor) -> Tensor:
    """Logits (B, C) up to a constant of each row, where a host may give probabilities.

    >>> import torch
    >>> as_logits(torch.tensor([[1.0, 3.0]]).softmax(-1)).diff().round()
    tensor([[2.]])
    >>> as_logits(torch.tensor([[1.0, 3.0]]))
    tensor([[1., 3.]])
    """
    full = output.float()
    tolerance = 1e-5 if output.dtype in (torch.float32, torch.float64) else 1e-2
    sums_to_one = (full.sum(-1) - 1).abs() <= tolerance
    if not bool((full >= 0).all() and sums_to_one.all()):
        return output
    return full.clamp_min(torch.finfo(full.dtype).tiny).log()


def to_float32(loss: Tensor) -> Tensor:
    """A host's loss in float32 at least: in half precision 65504 is the largest number.

    >>> import torch
    >>> (1000 * to_float32(torch.tensor(100.0).half())).item()
    100000.0
    """
    return loss.to(torch.promote_types(loss.dtype, torch.float32))


def distillation(prompt_logits: Tensor, anchor_logits: Tensor, temperature: float) -> Tensor:
    """T² · KL(softmax(ens / T) ‖ softmax(l_n / T)), ens the averaged logits, without gradient.

    The KL is summed over batch and classes and divided by their product, as in the released code,
    so its weight depends on the number of classes.

    Args:
        prompt_logits: l_n, (B, C).
        anchor_logits: l_a, (B, C).
        temperature: T > 0.

    Returns:
        A scalar in float32; zero where both logits agree.

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
            f"{tuple(anchor_logits.shape)}: want both (B, C)"
        )
    teacher = average(prompt_logits, anchor_logits).detach() / temperature
    student = prompt_logits.float() / temperature
    divergence = F.kl_div(
        student.log_softmax(-1), teacher.log_softmax(-1), reduction="sum", log_target=True
    )
    return temperature**2 * divergence / prompt_logits.numel()


class PromptLoss(TorchFunctionMode):
    """While active, pass cross-entropies of the prompt's logits through ``replace``.

    Those are the ones whose logits ``is_prompts`` accepts. A host's others, such as those of DePT's
    second head, are weighted as the prompt's is, so that its balance of them stays.

    Args:
        replace: maps (cross-entropy, logits (B, C)) to the loss that takes its place.
        is_prompts: tells the prompt's logits from others.
        weight: of the others.

    Attributes:
        replaced: whether one has been seen.

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

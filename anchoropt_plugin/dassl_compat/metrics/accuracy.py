"""Top-k accuracy of a batch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def compute_accuracy(
    output: Tensor | Sequence[Tensor], target: Tensor, topk: Sequence[int] = (1,)
) -> list[Tensor]:
    """Return the accuracy at each k, in per cent.

    Args:
        output: logits (B, C), or a sequence with the logits as its first item.
        target: labels (B,), int64.
        topk: values of k; a prediction is right if the label is among the k highest logits.

    Returns:
        One float tensor (1,) for each k.

    >>> import torch
    >>> logits = torch.tensor([[0.1, 0.9], [0.8, 0.2]])
    >>> compute_accuracy(logits, torch.tensor([1, 1]))
    [tensor([50.])]
    """
    logits = output if isinstance(output, Tensor) else output[0]
    ranked = logits.topk(max(topk), dim=1).indices
    hits = ranked == target[:, None]
    return [100.0 * hits[:, :k].any(dim=1).float().mean().reshape(1) for k in topk]

"""A classifier of images: CLIP's image tower and one weight vector a class, in plain PyTorch."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .architecture import variant_of


class ImageClassifier(nn.Module):
    """Images (B, 3, R, R) → probabilities (B, C).

    Args:
        visual: CLIP's image tower, images → features (B, e).
        weights: (C, e), one row a class.
        logit_scale: the factor of the cosines.

    >>> from anchoropt_plugin import load_clip
    >>> classifier = ImageClassifier(load_clip("tiny").visual, torch.eye(3, 128), 100.0)
    >>> classifier(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 3])
    """

    weights: Tensor
    logit_scale: Tensor

    def __init__(self, visual: nn.Module, weights: Tensor, logit_scale: float) -> None:
        super().__init__()
        self.visual = visual
        self.register_buffer("weights", weights)
        self.register_buffer("logit_scale", torch.tensor(logit_scale))

    def logits(self, images: Tensor) -> Tensor:
        """Return the scaled cosines (B, C)."""
        return self.logit_scale * F.normalize(self.visual(images), dim=-1) @ self.weights.t()

    def forward(self, images: Tensor) -> Tensor:
        return self.logits(images).softmax(-1)


def digest_of(module: nn.Module) -> str:
    """Return a digest of an image tower: its weights in float32, by name, and its variant."""
    digest = hashlib.sha256(variant_of(module).encode())
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        values = tensor.detach().float().cpu().flatten().contiguous()
        digest.update(values.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]

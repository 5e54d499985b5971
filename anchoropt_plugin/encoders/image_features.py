"""Features of the plain CLIP for the host's images, without a second CLIP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UserError
from .equivalence import CALL_ERRORS
from .frozen_linear import frozen_products


class FirstFeatures:
    """A forward hook on an image encoder that stores the plain features of the first call.

    The first call after ``clear`` belongs to the prompt: some hosts call their encoder a second
    time in a step. After the features are used, the next call brings further images: a step may
    sum the gradients of several batches.

    Args:
        plain: computes plain features; by default ``unprompted``.

    Attributes:
        value: L2-normalised features (B, e) in float32, or None before a call.
        is_used: whether the objective has used them; its caller sets this.
    """

    def __init__(self, plain: Callable[..., Tensor] | None = None) -> None:
        self.value: Tensor | None = None
        self.is_used = False
        self._plain = plain or unprompted
        self._busy = False

    def clear(self) -> None:
        """Wait for the next output."""
        self.value, self.is_used = None, False

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._busy or (self.value is not None and not self.is_used):
            return
        self._busy = True
        try:
            with torch.no_grad():
                features = self._plain(module, args, output)
        finally:
            self._busy = False
        self.value, self.is_used = F.normalize(features.detach().float(), dim=-1), False


def unprompted(encoder: nn.Module, args: tuple[Any, ...], output: Any) -> Tensor:
    """Return features (B, e) of the plain encoder, given a call of it and its output.

    If the call had visual prompts, or something in the encoder is trained, CLIP's transformer is
    run without all else in the encoder. An encoder of another kind is called once more with empty
    prompts.

    Raises:
        UserError: the encoder cannot be called without prompts.
    """
    has_trained = any(parameter.requires_grad for parameter in encoder.parameters())
    if _is_transformer(encoder) and (len(args) > 1 or has_trained):
        return plain_features(encoder, args[0])
    if len(args) > 1:
        try:
            output = encoder(args[0], *(none_of(prompts) for prompts in args[1:]))
        except CALL_ERRORS as error:
            raise UserError(
                f"{type(encoder).__name__} cannot be called without its prompts ({error}): give it "
                "a PromptHook (register_hook) whose plain_features returns the features of CLIP "
                "alone"
            ) from error
    return output[0] if isinstance(output, tuple) else output


def none_of(prompts: Any) -> Any:
    """Return prompts of zero tokens in the form of ``prompts``: a tensor, or a list."""
    return prompts[:0] if isinstance(prompts, Tensor) else []


def _is_transformer(encoder: nn.Module) -> bool:
    """Whether an image encoder is CLIP's transformer, perhaps with further parts."""
    parts = "conv1", "class_embedding", "ln_pre", "transformer", "ln_post"
    return all(hasattr(encoder, part) for part in parts)


def image_tokens(visual: Any, images: Tensor) -> Tensor:
    """Return the class token and the patches, (B, 1 + P, v), that CLIP's image transformer gets."""
    x = visual.conv1(images).flatten(2).permute(0, 2, 1)
    start = visual.class_embedding.to(x.dtype).expand(len(x), 1, -1)
    return torch.cat([start, x], 1) + visual.positional_embedding.to(x.dtype)


def plain_features(visual: Any, images: Tensor) -> Tensor:
    """Return features (B, e) of images (B, 3, R, R) by CLIP's image transformer alone.

    >>> from anchoropt_plugin import load_clip
    >>> visual, images = load_clip("tiny").visual, torch.randn(2, 3, 32, 32)
    >>> torch.allclose(plain_features(visual, images), visual(images), atol=1e-5)
    True
    """
    with frozen_products(images.device):
        x = visual.ln_pre(image_tokens(visual, images)).permute(1, 0, 2)
        for block in visual.transformer.resblocks:
            x = x + block.attention(block.ln_1(x))
            x = x + block.mlp(block.ln_2(x))
        features: Tensor = visual.ln_post(x[0]) @ visual.proj
    return features

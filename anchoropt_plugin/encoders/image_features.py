"""Features of the plain CLIP for the host's images, without a second CLIP."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from .equivalence import CALL_ERRORS
from .frozen_linear import frozen_products


def unprompted(encoder: nn.Module, args: tuple[Any, ...], output: Any) -> Tensor:
    """Return features (B, e) of the plain encoder, given a call of it and its output.

    If the call had visual prompts, or something in the encoder is trained, CLIP's transformer is
    run without all else in the encoder. An encoder of another kind is called once more with empty
    prompts.

    Raises:
        UserError: the encoder cannot be called without prompts.
    """
    has_trained = any(parameter.requires_grad for parameter in encoder.parameters())
    if is_transformer(encoder) and (len(args) > 1 or has_trained):
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


def is_transformer(encoder: nn.Module) -> bool:
    """Whether an image encoder is CLIP's transformer, perhaps with further parts."""
    parts = "conv1", "class_embedding", "ln_pre", "transformer", "ln_post"
    return all(hasattr(encoder, part) for part in parts)


def image_tokens(visual: Any, images: Tensor) -> Tensor:
    """Return the class token and the patches, (B, 1 + P, v), that CLIP's image transformer gets."""
    x = visual.conv1(images).flatten(2).permute(0, 2, 1)
    start = visual.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
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

"""Put the exact fast text branch in place of a model's text encoders, and take it off again."""

from __future__ import annotations

import logging
from typing import Any, TypeVar

from torch import nn

from ..errors import UserError
from ..process.data_parallel import refuse_data_parallel
from .fast_forward import FastForward
from .feature_cache import CachedFeatures
from .huggingface_text import is_huggingface
from .text_tower import blocks_of

log = logging.getLogger("anchoropt_plugin")

Trainer = TypeVar("Trainer", bound=type)


def is_text_encoder(module: nn.Module) -> bool:
    """Whether ``module`` has the parts that the tower reads, and takes embedded prompts."""
    if is_huggingface(module):
        return hasattr(module, "text_projection") and not hasattr(module, "vision_model")
    needed = ("transformer", "positional_embedding", "ln_final", "text_projection")
    if hasattr(module, "visual") or not all(hasattr(module, name) for name in needed):
        return False
    return isinstance(blocks_of(module), (nn.Sequential, nn.ModuleList))


def accelerate(model: nn.Module, *, chunk: int = 0, split: bool = False) -> list[FastForward]:
    """Put the fast branch in place of every text encoder in ``model``.

    A text encoder is a module with CLIP's ``transformer`` (or the blocks themselves under this
    name), ``positional_embedding``, ``ln_final`` and ``text_projection``; or with ``text_model``
    and ``text_projection`` of transformers. It is called with embedded prompts and their tokens, as
    in every repository of the CoOp family. Its weights, names and type stay; ``restore`` takes the
    branch off. On the first call the branch is compared with the encoder's own forward; if they
    differ, a warning says so and the own forward stays.

    Args:
        model: a host's model, or its text encoder.
        chunk: classes encoded at once, to bound the memory of thousands of classes; 0 takes all.
        split: whether several processes (torchrun) share the classes while training.

    Returns:
        The ``FastForward`` of each text encoder, old ones included. None at all is warned of.

    >>> import torch
    >>> from anchoropt_plugin import load_clip, tokenize
    >>> class TextEncoder(nn.Module):
    ...     def __init__(self, clip):
    ...         super().__init__()
    ...         self.transformer, self.ln_final = clip.transformer, clip.ln_final
    ...         self.positional_embedding = clip.positional_embedding
    ...         self.text_projection = clip.text_projection
    ...     def forward(self, prompts, tokens):
    ...         x = (prompts + self.positional_embedding).permute(1, 0, 2)
    ...         x = self.ln_final(self.transformer(x).permute(1, 0, 2))
    ...         return x[torch.arange(len(x)), tokens.argmax(-1)] @ self.text_projection
    >>> clip = load_clip("tiny")
    >>> tokens = tokenize(["a photo of a star.", "a photo of a blue circle."])
    >>> encoder = TextEncoder(clip)
    >>> plain = encoder(clip.token_embedding(tokens), tokens)
    >>> (fast,) = accelerate(encoder)
    >>> torch.allclose(encoder(clip.token_embedding(tokens), tokens), plain, atol=1e-5)
    True
    >>> restore(encoder)
    """
    encoders = [module for module in model.modules() if is_text_encoder(module)]
    if not encoders:
        log.warning(
            "%s has no text encoder that takes embedded prompts and has CLIP's transformer, "
            "positional_embedding, ln_final and text_projection: nothing is accelerated; put the "
            "text encoder into a module of its own",
            type(model).__name__,
        )
    return [install(encoder, chunk=chunk, split=split) for encoder in encoders]


def install(encoder: nn.Module, **settings: Any) -> FastForward:
    """Put a ``FastForward`` with ``settings`` on one text encoder, unless it has one already.

    Returns:
        The ``FastForward`` on the encoder.
    """
    forward = encoder.__dict__.get("forward")
    if not isinstance(forward, FastForward):
        # On the instance: type, submodules and state dict of the encoder stay as they are.
        encoder.forward = forward = FastForward(encoder, **settings)
    return forward


def restore(model: nn.Module) -> None:
    """Give every text and image encoder in ``model`` its own forward back."""
    for module in model.modules():
        if isinstance(module.__dict__.get("forward"), (FastForward, CachedFeatures)):
            del module.forward


def fast_text(trainer: Trainer) -> Trainer:
    """Give a Dassl trainer the fast text branch, without AnchorOPT; return the same class.

    Its ``build_model`` then ends by putting the branch on ``self.model``.

    Raises:
        UserError: the class has no ``build_model``.

    >>> @fast_text
    ... class Host:
    ...     def build_model(self):
    ...         self.model = nn.Linear(2, 2)
    >>> Host().build_model()
    """
    build_model = getattr(trainer, "build_model", None)
    if build_model is None:
        raise UserError(
            f"@fast_text is on {getattr(trainer, '__name__', trainer)!r}, which has no "
            "build_model: put it on a trainer; for a model, call accelerate(model)"
        )

    def build_fast_model(self: Any) -> None:
        build_model(self)
        refuse_data_parallel(self.model, type(self).__name__)
        accelerate(self.model)

    trainer.build_model = build_fast_model  # type: ignore[attr-defined]
    return trainer

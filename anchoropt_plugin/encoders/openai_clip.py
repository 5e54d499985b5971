"""OpenAI's ``clip`` module, imported without its warning."""

from __future__ import annotations

import warnings

from .pkg_resources_stand_in import offered_pkg_resources

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # clip imports pkg_resources, which is deprecated
    with offered_pkg_resources():
        import clip
        from clip.model import (
            CLIP,
            ModifiedResNet,
            QuickGELU,
            VisionTransformer,
            build_model,
            convert_weights,
        )
        from clip.simple_tokenizer import SimpleTokenizer, basic_clean, whitespace_clean

__all__ = [
    "CLIP",
    "ModifiedResNet",
    "QuickGELU",
    "SimpleTokenizer",
    "VisionTransformer",
    "basic_clean",
    "build_model",
    "clip",
    "convert_weights",
    "whitespace_clean",
]

"""AnchorOPT as a plug-in for prompt learners on CLIP: learned anchor tokens and their positions.

Importing this package makes ``import dassl`` work: where Dassl is not installed, the package's own
runtime answers; where it is, Dassl itself does, with what is broken on today's torch repaired. Its
default configuration gets the keys of ``TRAINER.ANCHOROPT``.
"""

from __future__ import annotations

import importlib

from .dassl_compat import install as _install_runtime

_install_runtime()  # first: a repository's own clip, which is found from here, may import dassl

from .encoders.accelerate import accelerate, fast_text, restore
from .encoders.clip_models import load_clip, tokenize
from .encoders.text_tower import TextTower
from .errors import UserError
from .method.anchors import AnchorTokens
from .method.position import AnchorPositionModule
from .prompts.hooks import PromptHook, attach, attached, detach, register_hook
from .training.decorators import anchoropt
from .training.predictor import Predictor, load_predictor
from .training.settings import extend_cfg
from .version import VERSION

__all__ = [
    "AnchorPositionModule",
    "AnchorTokens",
    "Predictor",
    "PromptHook",
    "TextTower",
    "UserError",
    "accelerate",
    "anchoropt",
    "attach",
    "attached",
    "detach",
    "extend_cfg",
    "fast_text",
    "load_clip",
    "load_predictor",
    "register_hook",
    "restore",
    "tokenize",
]
__version__ = VERSION

extend_cfg(importlib.import_module("dassl.config.defaults")._C)

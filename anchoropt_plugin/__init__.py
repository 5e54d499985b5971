"""AnchorOPT, a plug-in for CLIP prompt learners: learned anchor tokens and a position matrix.

Importing this package makes ``import dassl`` work. If Dassl is installed, it is used, and what
today's torch breaks in it is repaired; otherwise the package's own runtime answers. Dassl's default
configuration gets the keys of ``TRAINER.ANCHOROPT``.
"""

from __future__ import annotations

import importlib

from .process.program import import_from_here as _import_from_here

_import_from_here()  # first: this decides which clip and which Dassl are imported below

from .dassl_compat import install as _install_runtime

_install_runtime()  # second: a repository's own clip, imported below, may import dassl

from .encoders.accelerate import accelerate, fast_text, restore
from .encoders.clip_models import load_clip, tokenize
from .encoders.text_tower import TextTower
from .errors import UserError
from .method.anchor_learning import StageOne
from .method.anchors import AnchorTokens
from .method.objective import distillation
from .method.position import AnchorPositionModule
from .prompts.attachment import attach, attached, detach
from .prompts.hooks import PromptHook, register_hook
from .training.decorators import anchoropt
from .training.load_predictor import load_predictor
from .training.predictor import Predictor
from .training.settings import extend_cfg
from .version import VERSION

__all__ = [
    "AnchorPositionModule",
    "AnchorTokens",
    "Predictor",
    "PromptHook",
    "StageOne",
    "TextTower",
    "UserError",
    "accelerate",
    "anchoropt",
    "attach",
    "attached",
    "detach",
    "distillation",
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

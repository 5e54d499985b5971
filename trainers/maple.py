"""MaPLe: coupled deep prompts in both towers of CLIP (Khattak et al., arXiv 2210.03117).

Follows ``trainers/maple.py`` and ``clip/model.py`` of
https://github.com/muzairkhattak/multimodal-prompt-learning: same parameters.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from anchoropt_plugin import anchoropt
from anchoropt_plugin.encoders.image_features import image_tokens
from anchoropt_plugin.errors import UserError
from dassl.engine import TRAINER_REGISTRY

from .host import PromptTrainer
from .prompted_clip import ContextLearner, PromptedCLIP, initial_context, run_blocks

WORDS_AT_MOST = 4
"""Soft tokens up to which CTX_INIT is used; a longer context is drawn at random."""


class MultiModalPromptLearner(ContextLearner):
    """Prompts of the text tower, and their projections for the image tower.

    ``ctx`` (M, d) and ``compound_prompts_text``, PROMPT_DEPTH − 1 times (M, d), are learned;
    ``proj`` and ``compound_prompt_projections`` map them to the width v of the image tower. Deep
    prompts stay in float32, as in the public code.

    Attributes:
        deep_start: the first slot that deep prompts overwrite in the text tower.

    Raises:
        UserError: a CLIP without an image transformer, a PROMPT_DEPTH beyond its towers, or fewer
            tokens in CTX_INIT than N_CTX.
    """

    deep_start = 0

    def __init__(self, cfg: Any, class_names: Sequence[str], clip: nn.Module) -> None:
        settings = cfg.TRAINER.MAPLE
        if not hasattr(clip.visual, "transformer"):
            raise UserError(
                f"MaPLe needs an image transformer, and {cfg.MODEL.BACKBONE.NAME} has none: give "
                "a ViT as --backbone"
            )
        towers = clip.transformer, clip.visual.transformer
        blocks = max(len(tower.resblocks) for tower in towers)
        if not 1 <= settings.PROMPT_DEPTH <= blocks:
            raise UserError(
                f"TRAINER.MAPLE.PROMPT_DEPTH is {settings.PROMPT_DEPTH}: "
                f"{cfg.MODEL.BACKBONE.NAME} takes 1 to {blocks}"
            )
        n_ctx = settings.N_CTX
        init = settings.CTX_INIT if n_ctx <= WORDS_AT_MOST else ""
        words, ctx = initial_context(clip, init, n_ctx)
        if len(ctx) < n_ctx:
            raise UserError(
                f"TRAINER.MAPLE.CTX_INIT {init!r} has {len(ctx)} token(s), fewer than N_CTX "
                f"{n_ctx}: give more words, or an empty CTX_INIT"
            )
        super().__init__(clip, class_names, words, ctx[:n_ctx])
        deep, dim = settings.PROMPT_DEPTH - 1, ctx.shape[-1]
        width = clip.visual.class_embedding.shape[0]
        self.proj = nn.Linear(dim, width).to(clip.dtype)
        self.compound_prompts_text = nn.ParameterList(
            nn.init.normal_(torch.empty(n_ctx, dim), std=0.02) for _ in range(deep)
        )
        projection = nn.Linear(dim, width)  # as in the public code, all start from the same values
        self.compound_prompt_projections = nn.ModuleList(
            copy.deepcopy(projection) for _ in range(deep)
        )

    def forward(self) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
        """Return prompts (C, 77, d), image prompts (M, v), and the deep prompts of both towers."""
        deep_text = list(self.compound_prompts_text)
        projections = zip(self.compound_prompt_projections, deep_text, strict=True)
        deep_visual = [project(prompt) for project, prompt in projections]
        return self.prompts(self.ctx), self.proj(self.ctx), deep_text, deep_visual


class ImageEncoder(nn.Module):
    """CLIP's image transformer with prompts after the patches: (B, 3, R, R) → features (B, e).

    ``shared_ctx`` (M, v) follows the patches from block 0 on; ``deep_visual``, each (M, v),
    overwrites its rows before the blocks 1, 2, … None and an empty list give CLIP's own features.
    """

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual

    def forward(
        self, image: Tensor, shared_ctx: Tensor | None = None, deep_visual: Sequence[Tensor] = ()
    ) -> Tensor:
        visual = self.visual
        x = image_tokens(visual, image)
        first = x.shape[1]
        if shared_ctx is not None:
            x = torch.cat([x, shared_ctx.type(x.dtype).expand(x.shape[0], -1, -1)], 1)
        x = visual.ln_pre(x).permute(1, 0, 2)
        x = run_blocks(visual.transformer, x, deep_visual, first)
        return visual.ln_post(x[0]) @ visual.proj


class MultiModalCLIP(PromptedCLIP):
    """CLIP with prompts in both towers: images (B, 3, R, R) → logits (B, C)."""

    def __init__(self, prompt_learner: nn.Module, clip: nn.Module) -> None:
        super().__init__(prompt_learner, clip, ImageEncoder(clip.visual))
        self.text_encoder.deep_start = prompt_learner.deep_start

    def forward(self, image: Tensor) -> Tensor:
        prompts, shared_ctx, deep_text, deep_visual = self.prompt_learner()
        text_features = self.text_encoder(prompts, self.tokenized_prompts, deep_text)
        image_features = self.image_encoder(image.type(self.dtype), shared_ctx, deep_visual)
        return self.logits(image_features, text_features)


@anchoropt
@TRAINER_REGISTRY.register()
class MaPLe(PromptTrainer):
    """Multi-modal Prompt Learning: images (B, 3, R, R) → logits (B, C).

    Keys of ``TRAINER.MAPLE``: ``N_CTX`` (M soft tokens), ``CTX_INIT`` (words to start from),
    ``PROMPT_DEPTH`` (blocks with prompts, the first included), ``PREC``.

    Checkpoints have the names and keys of the public ones, but without the weights of CLIP.
    """

    node = "MAPLE"
    learner = MultiModalPromptLearner
    prompted_clip = MultiModalCLIP

    def checkpointed(self) -> tuple[str, nn.Module]:
        trained = nn.ModuleDict({"prompt_learner": self.model.prompt_learner})
        return "MultiModalPromptLearner", trained

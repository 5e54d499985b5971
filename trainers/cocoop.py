"""CoCoOp: soft tokens that each image shifts (Zhou et al., arXiv 2203.05557).

Follows ``trainers/cocoop.py`` of https://github.com/KaiyangZhou/CoOp: same parameters.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from anchoropt_plugin import anchoropt
from dassl.engine import TRAINER_REGISTRY

from .host import PromptTrainer
from .prompted_clip import ContextLearner, PromptedCLIP, initial_context

PROMPTS_AT_ONCE = 2048
"""Most prompts in memory at once during a test; a batch of B images has B · C of them."""


class PromptLearner(ContextLearner):
    """``[SOS] context + shift of the image [class name] . [EOT]``.

    ``ctx`` is (M, d); ``meta_net`` maps image features (e) to a shift (d) of every soft token.
    """

    def __init__(self, cfg: Any, class_names: Sequence[str], clip: nn.Module) -> None:
        settings = cfg.TRAINER.COCOOP
        context = initial_context(clip, settings.CTX_INIT, settings.N_CTX)
        super().__init__(clip, class_names, *context)
        features, hidden = clip.visual.output_dim, clip.visual.output_dim // 16
        layers = {
            "linear1": nn.Linear(features, hidden),
            "relu": nn.ReLU(),
            "linear2": nn.Linear(hidden, self.ctx.shape[-1]),
        }
        self.meta_net = nn.Sequential(OrderedDict(layers)).to(clip.dtype)

    def forward(self, image_features: Tensor) -> Tensor:
        """Return prompts (B, C, 77, d) for L2-normalised image features (B, e)."""
        shift = self.meta_net(image_features)
        return self.prompts(self.ctx + shift[:, None, None])


class ConditionalCLIP(PromptedCLIP):
    """CLIP with other prompts for each image: images (B, 3, R, R) → logits (B, C)."""

    def forward(self, image: Tensor) -> Tensor:
        features = self.image_encoder(image.type(self.dtype))
        if _is_exporting():  # an exported program has no loop over parts
            return self._logits(features)
        at_once = len(features)
        if not self.prompt_learner.training:
            at_once = max(1, PROMPTS_AT_ONCE // len(self.tokenized_prompts))
        return torch.cat([self._logits(part) for part in features.split(at_once)])

    def _logits(self, features: Tensor) -> Tensor:
        prompts = self.prompt_learner(features / features.norm(dim=-1, keepdim=True))
        return self.logits(features, self.text_encoder(prompts, self.tokenized_prompts))


def _is_exporting() -> bool:
    is_in_export = torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()
    return is_in_export or torch.jit.is_tracing()


@anchoropt
@TRAINER_REGISTRY.register()
class CoCoOp(PromptTrainer):
    """Conditional Context Optimization: images (B, 3, R, R) → logits (B, C).

    Keys of ``TRAINER.COCOOP``: ``N_CTX`` (M soft tokens), ``CTX_INIT`` (words to start from),
    ``PREC``.
    """

    node = "COCOOP"
    learner = PromptLearner
    prompted_clip = ConditionalCLIP

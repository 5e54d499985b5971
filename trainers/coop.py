"""CoOp: a prompt of soft tokens in place of words (Zhou et al., arXiv 2109.01134).

Follows ``trainers/coop.py`` of https://github.com/KaiyangZhou/CoOp: same parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from anchoropt_plugin import anchoropt
from anchoropt_plugin.errors import UserError
from dassl.engine import TRAINER_REGISTRY

from .host import PromptTrainer
from .prompted_clip import ContextLearner, initial_context

CLASS_TOKEN_POSITIONS = ("end", "middle", "front")


class PromptLearner(ContextLearner):
    """``[SOS] context [class name] . [EOT]`` with a learned context.

    ``ctx`` is (M, d), or (C, M, d) with ``CSC``; the forward returns prompts (C, 77, d).
    """

    def __init__(self, cfg: Any, class_names: Sequence[str], clip: nn.Module) -> None:
        settings = cfg.TRAINER.COOP
        sets = [len(class_names)] if settings.CSC else []
        context = initial_context(clip, settings.CTX_INIT, settings.N_CTX, *sets)
        super().__init__(clip, class_names, *context)
        self.class_token_position = settings.CLASS_TOKEN_POSITION
        order = _order(self.tokenized_prompts, self.ctx.shape[-2], self.class_token_position)
        self.register_buffer("order", order, persistent=False)

    def forward(self) -> Tensor:
        prompts = self.prompts(self.ctx)
        if self.class_token_position == "end":
            return prompts
        return prompts.gather(1, self.order[..., None].expand_as(prompts))


def _order(tokens: Tensor, n_ctx: int, position: str) -> Tensor:
    """Return (C, 77) indices that move the class names from the end of the prompts elsewhere."""
    if position not in CLASS_TOKEN_POSITIONS:
        known = ", ".join(CLASS_TOKEN_POSITIONS)
        raise UserError(f"TRAINER.COOP.CLASS_TOKEN_POSITION is {position!r}: give one of {known}")
    before = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[position]
    orders = []
    for eot in tokens.argmax(-1).tolist():
        context, full_stop = range(1, 1 + n_ctx), eot - 1
        name = range(1 + n_ctx, full_stop)
        rest = range(full_stop, tokens.shape[1])
        orders.append([0, *context[:before], *name, *context[before:], *rest])
    return torch.tensor(orders)


@anchoropt
@TRAINER_REGISTRY.register()
class CoOp(PromptTrainer):
    """Context Optimization: images (B, 3, R, R) → logits (B, C).

    Keys of ``TRAINER.COOP``: ``N_CTX`` (M soft tokens), ``CTX_INIT`` (words to start from),
    ``CSC`` (soft tokens of each class), ``CLASS_TOKEN_POSITION``, ``PREC``.
    """

    node = "COOP"
    learner = PromptLearner

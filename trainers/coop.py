"""CoOp: soft tokens in place of a prompt's words (Zhou et al., arXiv 2109.01134)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from anchoropt_plugin import anchoropt
from anchoropt_plugin.clip_models import tokenize
from anchoropt_plugin.errors import UserError
from dassl.engine import TRAINER_REGISTRY

from .host import PromptTrainer, embed_prompts

CLASS_TOKEN_POSITIONS = ("end", "middle", "front")


class PromptLearner(nn.Module):
    """``[SOS] context [class name] . [EOT]`` with a learned context.

    ``ctx`` is (M, d), or (C, M, d) with ``CSC``; the forward returns prompts (C, 77, d).
    """

    def __init__(self, cfg: Any, class_names: Sequence[str], clip: nn.Module) -> None:
        super().__init__()
        settings = cfg.TRAINER.COOP
        dim = clip.ln_final.weight.shape[0]
        if settings.CTX_INIT:
            words = settings.CTX_INIT.replace("_", " ")
            n_ctx = int(tokenize([words]).argmax()) - 1
            with torch.no_grad():
                ctx = clip.token_embedding(tokenize([words]))[0, 1 : 1 + n_ctx].type(clip.dtype)
        else:
            n_ctx = settings.N_CTX
            if n_ctx < 1:
                raise UserError(f"TRAINER.COOP.N_CTX is {n_ctx}: a context has at least one token")
            words = " ".join(["X"] * n_ctx)
            shape = (len(class_names), n_ctx, dim) if settings.CSC else (n_ctx, dim)
            ctx = nn.init.normal_(torch.empty(shape, dtype=clip.dtype), std=0.02)
        print(f'Initial context: "{words}"')
        print(f"Number of context words (tokens): {n_ctx}")
        self.ctx = nn.Parameter(ctx)
        self.tokenized_prompts, embedding = embed_prompts(clip, class_names, words)
        self.register_buffer("token_prefix", embedding[:, :1])
        self.register_buffer("token_suffix", embedding[:, 1 + n_ctx :])
        self.class_token_position = settings.CLASS_TOKEN_POSITION
        order = _order(self.tokenized_prompts, n_ctx, self.class_token_position)
        self.register_buffer("order", order, persistent=False)

    def forward(self) -> Tensor:
        ctx = self.ctx if self.ctx.dim() == 3 else self.ctx.expand(len(self.token_prefix), -1, -1)
        prompts = torch.cat([self.token_prefix, ctx, self.token_suffix], 1)
        if self.class_token_position == "end":
            return prompts
        return prompts.gather(1, self.order[..., None].expand_as(prompts))


def _order(tokens: Tensor, n_ctx: int, position: str) -> Tensor:
    """For each class which token of the prompt with its name at the end goes where, (C, 77)."""
    if position not in CLASS_TOKEN_POSITIONS:
        known = ", ".join(CLASS_TOKEN_POSITIONS)
        raise UserError(f"TRAINER.COOP.CLASS_TOKEN_POSITION is {position!r}: one of {known}")
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
    """Context Optimization."""

    node = "COOP"

    def build_learner(self, class_names: Sequence[str], clip: nn.Module) -> nn.Module:
        return PromptLearner(self.cfg, class_names, clip)

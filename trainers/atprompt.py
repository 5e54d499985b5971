"""ATPrompt: attribute words in the prompt, each after soft tokens of its own.

Follows ``trainers/*_atp.py`` of https://github.com/zhengli97/ATPrompt (Li et al., arXiv
2412.09442). A host's prompt ``[SOS] context [class name] . [EOT]`` becomes
``[SOS] soft attribute soft attribute … context [class name] . [EOT]``.

``AttributeLearner`` and ``AttributeTrainer`` are base classes to put before those of a host. All
attribute words and soft tokens belong to the context that AnchorOPT arranges.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from anchoropt_plugin import anchoropt
from anchoropt_plugin.encoders.clip_models import tokenize, warn_of_unknown_words
from anchoropt_plugin.errors import UserError
from dassl.engine import TRAINER_REGISTRY

from . import cocoop, coop, dept, maple
from .host import PromptTrainer
from .prompted_clip import ContextLearner

ATTRIBUTES_AT_MOST = 3


def attribute_words(settings: Any) -> list[str]:
    """Return the attributes of ``cfg.TRAINER.ATPROMPT``; an empty list without USE_ATPROMPT.

    Raises:
        UserError: an ATT_NUM other than 1, 2 or 3, a missing word, or an attribute without soft
            tokens.
    """
    if not settings.USE_ATPROMPT:
        return []
    number = settings.ATT_NUM
    if not 1 <= number <= ATTRIBUTES_AT_MOST:
        raise UserError(
            f"TRAINER.ATPROMPT.ATT_NUM is {number}: ATPrompt takes 1 to {ATTRIBUTES_AT_MOST} "
            "attributes; set ATT_NUM and ATT1_TEXT …, as the files in configs/datasets do"
        )
    for i in range(1, ATTRIBUTES_AT_MOST + 1):
        soft = settings[f"N_ATT{i}"]
        if soft < 1:
            raise UserError(f"TRAINER.ATPROMPT.N_ATT{i} is {soft}: give 1 or more soft tokens")
    words = [settings[f"ATT{i}_TEXT"].strip() for i in range(1, number + 1)]
    for i, word in enumerate(words, start=1):
        if word.lower() in ("", "none"):
            raise UserError(
                f"TRAINER.ATPROMPT.ATT{i}_TEXT is {word!r}, but ATT_NUM is {number}: "
                "give a word for each attribute"
            )
    return words


class AttributeLearner(ContextLearner):
    """Attributes before the context of a host's learner; a base class to put before the host's.

    ``ctx_att1`` … ``ctx_att3``, (N_ATT1, d) … (N_ATT3, d), are learned too. The prompt has the
    first ATT_NUM of them; all three are saved, so that a checkpoint also loads for data sets with
    more attributes. Without USE_ATPROMPT the learner is the host's.

    As in the public code an attribute has one slot. If the attribute has several tokens, the slot
    gets the first one, and the prompt is cut as if every attribute had one token.

    Attributes:
        attributes: the attribute words.
    """

    def __init__(self, cfg: Any, class_names: Sequence[str], clip: nn.Module) -> None:
        super().__init__(cfg, class_names, clip)  # type: ignore[arg-type, call-arg]  # the host's
        settings = cfg.TRAINER.ATPROMPT
        self.attributes = attribute_words(settings)
        if not self.attributes:
            print("No attributes: TRAINER.ATPROMPT.USE_ATPROMPT is not set")
            return
        n_ctx, dim = self.ctx.shape[-2:]
        lengths = [settings[f"N_ATT{i}"] for i in range(1, ATTRIBUTES_AT_MOST + 1)]
        for i, length in enumerate(lengths, start=1):
            soft = nn.init.normal_(torch.empty(length, dim, dtype=clip.dtype), std=0.01)
            self.register_parameter(f"ctx_att{i}", nn.Parameter(soft))
        words, sizes = [], []
        for attribute, length in zip(self.attributes, lengths, strict=False):
            _warn_of_several_tokens(attribute)
            words += ["X"] * length + [attribute]
            sizes += [length, 1]
        words += ["X"] * n_ctx
        sizes.append(n_ctx)
        print(f'Context with attributes: "{" ".join(words)}"')
        warn_of_unknown_words(clip, self.attributes, "attributes")
        slots = self.frame(clip, class_names, " ".join(words), sum(sizes)).split(sizes, 1)
        for i, attribute in enumerate(slots[1::2], start=1):
            self.register_buffer(f"token_middle{i}", attribute)

    def context(self, ctx: Tensor) -> Sequence[Tensor]:
        """Return soft tokens and attributes in turn, then ``ctx``."""
        parts = []
        for i in range(1, len(self.attributes) + 1):
            parts += [getattr(self, f"ctx_att{i}"), getattr(self, f"token_middle{i}")]
        return [*parts, *super().context(ctx)]


def _warn_of_several_tokens(attribute: str) -> None:
    count = int(tokenize([attribute]).argmax()) - 1
    if count > 1:
        print(
            f"Warning: the attribute {attribute!r} has {count} tokens and one slot: as in the "
            "public code the slot gets its first token, and the rest of the prompt starts "
            f"{count - 1} token(s) early"
        )


class AttributeTrainer(PromptTrainer):
    """A host with ``learner`` in place of its own; a base class to put before the host's.

    Keys of ``TRAINER.ATPROMPT``, besides the host's: ``USE_ATPROMPT``, ``ATT_NUM`` (attributes),
    ``ATT1_TEXT`` … (attribute words), ``N_ATT1`` … (soft tokens of each).
    """

    nodes_of_data = ("ATPROMPT",)

    def check_cfg(self, cfg: Any) -> None:
        super().check_cfg(cfg)
        attributes = attribute_words(cfg.TRAINER.ATPROMPT)
        place = cfg.TRAINER[self.node].get("CLASS_TOKEN_POSITION", "end")
        if attributes and place != "end":
            raise UserError(
                f"TRAINER.{self.node}.CLASS_TOKEN_POSITION is {place!r}: with attributes it must "
                "be 'end'"
            )

    def build_learner(self, class_names: Sequence[str], clip: nn.Module) -> nn.Module:
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.TRAINER[self.node].CTX_INIT = ""  # as in the public code, all soft tokens are drawn
        return self.learner(cfg, class_names, clip)


# ---------------------------------------------------------------------------------- CoOp
class CoOpLearner(AttributeLearner, coop.PromptLearner):
    """CoOp's prompt learner with attributes."""


@anchoropt
@TRAINER_REGISTRY.register()
class CoOp_ATP(AttributeTrainer, coop.CoOp):
    """CoOp with attributes: images (B, 3, R, R) → logits (B, C)."""

    learner = CoOpLearner


# ---------------------------------------------------------------------------------- CoCoOp
class CoCoOpLearner(AttributeLearner, cocoop.PromptLearner):
    """CoCoOp's prompt learner with attributes; the image shifts the context only."""


@anchoropt
@TRAINER_REGISTRY.register()
class CoCoOp_ATP(AttributeTrainer, cocoop.CoCoOp):
    """CoCoOp with attributes: images (B, 3, R, R) → logits (B, C)."""

    learner = CoCoOpLearner


# ---------------------------------------------------------------------------------- MaPLe
class MaPLeLearner(AttributeLearner, maple.MultiModalPromptLearner):
    """MaPLe's prompt learner with attributes, which the image tower does not get.

    As in the public code, deep prompts overwrite M slots of the text tower, counted as if every
    attribute had M soft tokens. If N_ATT1 … equal N_CTX, as in the published runs, these slots are
    the context, and attributes keep their hidden states.

    Raises:
        UserError: deep prompts that go beyond the context.
    """

    def __init__(self, cfg: Any, class_names: Sequence[str], clip: nn.Module) -> None:
        super().__init__(cfg, class_names, clip)
        n_ctx = len(self.ctx)
        self.deep_start = len(self.attributes) * (n_ctx + 1)
        n_slots = sum(part.shape[-2] for part in self.context(self.ctx))
        if not len(self.compound_prompts_text) or self.deep_start + n_ctx == n_slots:
            return
        settings = "TRAINER.ATPROMPT.N_ATT1 … differ from TRAINER.MAPLE.N_CTX"
        if self.deep_start + n_ctx > n_slots:
            raise UserError(
                f"{settings}: deep prompts would overwrite class names; make them equal"
            )
        print(f"Warning: {settings}: deep prompts overwrite attributes too, as in the public code")


@anchoropt
@TRAINER_REGISTRY.register()
class MaPLe_ATP(AttributeTrainer, maple.MaPLe):
    """MaPLe with attributes: images (B, 3, R, R) → logits (B, C)."""

    learner = MaPLeLearner


# ---------------------------------------------------------------------------------- DePT
class DePTLearner(AttributeLearner, dept.TwoHeadedLearner):
    """DePT's prompt learner with attributes."""


@anchoropt(kd_weight=0.0)
@TRAINER_REGISTRY.register()
class DePT_ATP(AttributeTrainer, dept.DePT):
    """DePT with attributes: images (B, 3, R, R) → logits (B, C)."""

    learner = DePTLearner

"""DePT on CoOp: a second head on adjusted channels, trained beside the prompt.

Decoupled Prompt Tuning (Zhang et al., arXiv 2309.07439) can be put on several hosts; this is DePT
on CoOp, the baseline of AnchorOPT's tables. Follows ``ExtrasLinearProbeCoOp`` of
https://github.com/Koorye/DePT and ``DePT`` of AnchorOPT's code: same keys, parameter names and
checkpoints.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anchoropt_plugin import PromptHook, anchoropt, register_hook
from anchoropt_plugin.errors import UserError
from dassl.engine import TRAINER_REGISTRY

from .coop import CoOp, PromptLearner
from .prompted_clip import PromptedCLIP

TYPES = ("linear", "similarity")
SECOND_HEAD = ("film_lp_img", "film_lp_text", "linear_probe_proj")
"""The names of the second head's modules."""


class FiLM(nn.Module):
    """Scale and shift each channel of features (B, e), in their dtype; initially the identity.

    >>> FiLM(2)(torch.tensor([[1.0, 2.0]])).tolist()
    [[1.0, 2.0]]
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale.type(x.dtype) * x + self.bias.type(x.dtype)


class TwoHeadedCLIP(PromptedCLIP):
    """Prompted CLIP with a second head: images (B, 3, R, R) → logits (B, C) of both.

    Attributes:
        film_lp_img: channel adjustment of image features, for the second head only.
        film_lp_text: channel adjustment of text features, for the second head only.
        linear_probe_proj: the linear head, features (B, e) → logits (B, C); the identity for
            TYPE "similarity".
        knows_classes: whether the second head was trained on the present classes; if not, the
            prompts give the logits.
    """

    def __init__(self, cfg: Any, prompt_learner: nn.Module, clip: nn.Module) -> None:
        super().__init__(prompt_learner, clip)
        self.settings = cfg.TRAINER.LINEAR_PROBE
        dim, n_classes = clip.text_projection.shape[1], len(self.tokenized_prompts)
        adjusts = cfg.TRAINER.FILM.LINEAR_PROBE
        self.film_lp_img = FiLM(dim) if adjusts else nn.Identity()
        self.film_lp_text = FiLM(dim) if adjusts else nn.Identity()
        self.is_linear = self.settings.TYPE == "linear"
        head = nn.Linear(dim, n_classes).type(self.dtype) if self.is_linear else nn.Identity()
        self.linear_probe_proj = head
        self.knows_classes = False

    def forward(self, image: Tensor) -> Tensor:
        image_features, text_features = self.features(image)
        logits = self.logits(image_features, text_features)
        if not self.knows_classes:
            return logits
        second, _ = self.second_head(image_features, text_features)
        if not self.settings.TEST_TIME_FUSION:
            return second
        return self.weighted(logits, second)

    def weighted(self, prompt: Tensor, second: Tensor) -> Tensor:
        """Return the weighted mean of both heads' logits, or of their losses."""
        weight = self.settings.WEIGHT
        return (1 - weight) * prompt + weight * second

    def second_head(
        self, image_features: Tensor, text_features: Tensor, label: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the second head's logits of features (B, e) and (C, e), and their labels.

        Given labels (B), a linear head returns 2B rows: the text features of the labels are B more
        training examples, before the images.
        """
        image_features = self.film_lp_img(image_features)
        text_features = self.film_lp_text(text_features)
        if not self.is_linear:
            return self.logits(image_features, text_features), label
        if label is None:
            return self.linear_probe_proj(image_features), None
        examples = torch.cat([text_features[label], image_features])
        return self.linear_probe_proj(examples), torch.cat([label, label])


class TwoHeadedLearner(PromptLearner):
    """CoOp's prompt learner, in a model with a second head."""


class TwoHeadedHook(PromptHook):
    """The loss of DePT is one weighted mean: PROMPT_CE_WEIGHT is the weight of both heads."""

    def is_of_prompt_loss(self, logits: Tensor, n_images: int, n_classes: int) -> bool:
        return True


register_hook(TwoHeadedLearner, TwoHeadedHook())


@anchoropt(kd_weight=0.0)
@TRAINER_REGISTRY.register()
class DePT(CoOp):
    """Decoupled Prompt Tuning: images (B, 3, R, R) → logits (B, C).

    For the classes of the training the logits of both heads are averaged; for other classes the
    prompts give the logits.

    Keys: all of ``TRAINER.COOP``; of ``TRAINER.LINEAR_PROBE`` the keys ``TYPE`` (linear or
    similarity), ``WEIGHT`` (share of the second head), ``TEST_TIME_FUSION``;
    ``TRAINER.FILM.LINEAR_PROBE`` (adjust channels). With ``OPTIM.STAGED_LR`` (the authors' code)
    ``OPTIM.NEW_LAYERS`` learn at ``LR · LR_EXP`` and the rest at ``LR · BASE_LR_MULT``; without
    (AnchorOPT's code) all parts learn at ``LR``.
    """

    further_nodes = ("LINEAR_PROBE", "FILM")

    def check_cfg(self, cfg: Any) -> None:
        super().check_cfg(cfg)
        settings = cfg.TRAINER.LINEAR_PROBE
        if settings.TYPE not in TYPES:
            raise UserError(
                f"TRAINER.LINEAR_PROBE.TYPE is {settings.TYPE!r}: give one of {', '.join(TYPES)}"
            )
        if not 0 <= settings.WEIGHT <= 1:
            raise UserError(
                f"TRAINER.LINEAR_PROBE.WEIGHT is {settings.WEIGHT}: give the share of the second "
                "head, from 0 to 1"
            )

    def build_learner(self, class_names: Sequence[str], clip: nn.Module) -> nn.Module:
        return TwoHeadedLearner(self.cfg, class_names, clip)

    def build_prompted_clip(self, learner: nn.Module, clip: nn.Module) -> PromptedCLIP:
        return TwoHeadedCLIP(self.cfg, learner, clip)

    def checkpointed(self) -> tuple[str, nn.Module]:
        parts = {name: getattr(self.model, name) for name in ("prompt_learner", *SECOND_HEAD)}
        return "PromptLearner", nn.ModuleDict(parts)

    def parameter_groups(self, trained: nn.Module) -> list[dict[str, Any]] | None:
        optim = self.cfg.OPTIM
        if not optim.STAGED_LR:
            return None
        layers = optim.NEW_LAYERS
        layers = [layers] if isinstance(layers, str) else layers
        groups: dict[bool, list[nn.Parameter]] = {False: [], True: []}
        for name, part in trained.named_children():
            groups[any(layer in name for layer in layers)].extend(part.parameters())
        if not groups[True]:
            raise UserError(
                "OPTIM.STAGED_LR is set, but the second head has none of OPTIM.NEW_LAYERS "
                f"{list(layers)}: give ['linear_probe', 'film']"
            )
        return [
            {"params": groups[False], "lr": optim.LR * optim.BASE_LR_MULT},
            {"params": groups[True], "lr": optim.LR * optim.LR_EXP},
        ]

    def before_train(self) -> None:
        super().before_train()
        self.model.knows_classes = True

    def loss(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        features = self.model.features(image)
        logits = self.model.logits(*features)
        second, labels = self.model.second_head(*features, label)
        losses = F.cross_entropy(logits, label), F.cross_entropy(second, labels)
        return self.model.weighted(*losses), logits

    def loadable(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Keep the linear head's rows of the present classes, if it was trained on all of them."""
        here = self._models["PromptLearner"].state_dict()
        there = {key for key in state if key.startswith(SECOND_HEAD)}
        names = "prompt_learner.token_suffix"
        if not there and names not in state:
            # A file of the released code, which trains the second head and does not save it.
            print("Warning: the checkpoint has no second head: the prompts give the logits")
            self.model.knows_classes = False
            return {**state, **{key: here[key] for key in here if key.startswith(SECOND_HEAD)}}
        if there != {key for key in here if key.startswith(SECOND_HEAD)}:
            raise UserError(
                "the checkpoint has another second head: give the TRAINER.LINEAR_PROBE.TYPE and "
                "TRAINER.FILM.LINEAR_PROBE of its training"
            )
        rows = head_rows(here[names], state.get(names))
        self.model.knows_classes = rows is not None
        for key in there:
            if key.startswith("linear_probe_proj"):
                state[key] = here[key] if rows is None else state[key][rows]
        return super().loadable(state)


def head_rows(here: Tensor, there: Tensor | None) -> list[int] | None:
    """Return each present class's row in a checkpoint's head, or None if some class has no row.

    Classes are identified by the embeddings of their names (C, L, d), which every checkpoint holds.
    Classes of the same name, as ImageNet has, are matched in their order.
    """
    if there is None or here.shape[1:] != there.shape[1:]:
        return None
    trained: defaultdict[bytes, deque[int]] = defaultdict(deque)
    for row, name in enumerate(_bits(there)):
        trained[name].append(row)
    rows = [trained[name].popleft() if trained[name] else None for name in _bits(here)]
    return None if None in rows else rows


def _bits(names: Tensor) -> list[bytes]:
    # Rounded to float16, embeddings are the same for every PREC.
    return [name.numpy().tobytes() for name in names.half().cpu()]

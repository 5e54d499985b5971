"""A training step of a host with AnchorOPT: forward, backward and SGD.

Our side is the host of ``trainers/`` with ``@anchoropt``: the fast text branch, anchor prompts
encoded once, the image tower of ``image_tower.py``; in one more row, image features are cached. The
plain side computes the same objective as public code does: 77 tokens for every prompt, one image
after the other in CoCoOp, anchor prompts encoded again at each step. Every step starts from the
same weights and images.

CoOp and CoCoOp are whole steps with the image tower. For MaPLe only the text side is measured:
image features are given. CoCoOp with 500 classes and batch 8 has no plain side, which would hold
4,000 prompts of 77 tokens.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import train
from anchoropt_plugin.encoders.clip_models import CLIP
from anchoropt_plugin.encoders.feature_cache import CachedFeatures
from anchoropt_plugin.encoders.image_calls import ImageCall
from anchoropt_plugin.method.objective import PromptLoss
from anchoropt_plugin.training.host_parts import HostParts
from anchoropt_plugin.training.settings import AnchorOPTConfig
from anchoropt_plugin.training.stage_two import AnchorOPT
from anchoropt_plugin.training.step_losses import StepLosses
from benchmarks import command
from benchmarks.cost import Cost, cut_text, fast_text, image_tower, plain_text
from benchmarks.harness import Bench, Case, Outcome, Side, require_in_use
from benchmarks.plain import (
    CutTextEncoder,
    PlainPrompts,
    PlainTextEncoder,
    class_names,
    cut_rivals,
    scaled_cosines,
    unit,
)
from dassl.config import get_cfg_default
from dassl.engine import TRAINER_REGISTRY
from trainers.prompted_clip import PromptedCLIP, TextEncoder

N_CTX = 4
PROMPT_DEPTH = 9

Objective = Callable[[], tuple[Tensor, Tensor]]
"""Returns the loss and the logits (B, C)."""


def host_model(host: str, class_names: Sequence[str], clip: CLIP) -> PromptedCLIP:
    """Return the model of a host of ``trainers/`` with four soft tokens."""
    cfg = get_cfg_default()
    train.extend_cfg(cfg)
    settings = cfg.TRAINER[host.upper()]
    settings.N_CTX, settings.CTX_INIT = N_CTX, ""
    cfg.TRAINER.MAPLE.PROMPT_DEPTH = min(PROMPT_DEPTH, len(clip.transformer.resblocks))
    trainer = TRAINER_REGISTRY.get(host)
    with contextlib.redirect_stdout(io.StringIO()):
        return trainer.prompted_clip(trainer.learner(cfg, class_names, clip), clip)


class CoOpStep:
    """A step of CoOp with AnchorOPT, in the plain way and in ours.

    Attributes:
        host: name of the host.
        encodes_images: whether the image tower is part of the step.
        run: AnchorOPT in the host.
        model: the host's model.
        features: image features (B, e), L2-normalised, where ``encodes_images`` is False.
    """

    host = "CoOp"
    encodes_images = True

    def __init__(self, bench: Bench, n_classes: int, batch: int) -> None:
        self.sizes, self.batch, self.n_classes = bench.sizes, batch, n_classes
        settings = AnchorOPTConfig(keep_features=False)
        names = class_names(n_classes)
        parts = HostParts(self.host, "prompt_learner", settings)
        with parts.watching():
            self.clip = bench.clip()
            self.model = host_model(self.host, names, self.clip).to(bench.device)
        self.learner, self.position = self.model.prompt_learner, parts.position
        self.position.anchors.copy_(0.02 * bench.random(1, bench.sizes.width))
        self.run = AnchorOPT(settings, parts, names)
        of_names = [f"of {name}" for name in names]
        n_anchors = self.position.n_anchors
        self.anchor_prompts = PlainPrompts(self.clip, of_names, n_anchors, bench.device)
        self.tokens = self.model.tokenized_prompts
        self.plain_encoder = self.encoder(is_cut=False)
        self.images = bench.random(batch, 3, bench.sizes.resolution, bench.sizes.resolution)
        self.features = unit(bench.random(batch, bench.sizes.embed_dim))
        self.labels = torch.arange(batch, device=bench.device) % n_classes
        self.parameters = [p for p in self.learner.parameters() if p.requires_grad]
        self.start = [p.detach().clone() for p in self.parameters]
        self.optimizer = torch.optim.SGD(self.parameters, lr=0.002, momentum=0.9, weight_decay=5e-4)

    @property
    def n_sets(self) -> int:
        """Number of sets of prompts: CoCoOp has one for each image."""
        return 1

    def update(self, objective: Objective) -> Outcome:
        """Do one step from the weights at the start."""
        with torch.no_grad():
            for parameter, start in zip(self.parameters, self.start, strict=True):
                parameter.copy_(start)
        loss, logits = objective()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        return Outcome(logits.detach(), gradients)

    # ------------------------------------------------------------------ the plain way
    def encoder(self, is_cut: bool) -> TextEncoder:
        """Return a plain text encoder for 77 tokens, or for those up to the longest EOT."""
        return (CutTextEncoder if is_cut else PlainTextEncoder)(self.clip)

    def plain(self, encoder: TextEncoder) -> tuple[Tensor, Tensor]:
        """Return loss and logits of the plain way; only the encoder for 77 tokens forgets."""
        features = unit(self.clip.visual(self.images)) if self.encodes_images else self.features
        logits = self.plain_logits(features, encoder)
        settings = self.run.settings
        with torch.no_grad():
            is_plain = encoder is self.plain_encoder
            text = self.anchor_text() if is_plain else self.anchor_text_once
            teacher = (logits + scaled_cosines(self.clip, features, text)) / 2
        temperature = settings.kd_temperature
        divergence = F.kl_div(
            F.log_softmax(logits / temperature, -1),
            F.log_softmax(teacher / temperature, -1),
            reduction="sum",
            log_target=True,
        )
        distillation = temperature**2 * divergence / logits.numel()
        cross_entropy = F.cross_entropy(logits, self.labels)
        loss = settings.prompt_ce_weight * cross_entropy + settings.kd_weight * distillation
        return loss, logits

    @torch.no_grad()
    def anchor_text(self) -> Tensor:
        """Return the features of the anchor prompts."""
        prompts = self.anchor_prompts
        return PlainTextEncoder(self.clip)(prompts(self.position.anchors), prompts.tokens)

    @cached_property
    def anchor_text_once(self) -> Tensor:
        """The features of the anchor prompts, encoded once."""
        return self.anchor_text()

    def plain_logits(self, features: Tensor, encoder: TextEncoder) -> Tensor:
        """Return the logits of the prompts for normalised image features."""
        return scaled_cosines(self.clip, features, encoder(self.learner(), self.tokens))

    # ------------------------------------------------------------------ ours
    def ours(self, cached: CachedFeatures | None = None) -> tuple[Tensor, Tensor]:
        """Return loss and logits of the host's own forward, under AnchorOPT's objective.

        Without ``cached``, every image is new.
        """
        with PromptLoss(StepLosses(self.run)):
            logits = self.our_logits(cached)
            loss = F.cross_entropy(logits, self.labels)
        require_in_use([self.model.text_encoder.forward])
        return loss, logits

    def our_logits(self, cached: CachedFeatures | None) -> Tensor:
        """Return the logits of the host's own forward."""
        self.run.features.clear()
        encoder = self.model.image_encoder
        # Only during the call: the plain side uses the same encoder.
        with mock.patch.object(encoder, "forward", cached or CachedFeatures(encoder)):
            return self.model(self.images)

    # ------------------------------------------------------------------ the case
    def case(self) -> Case:
        """Return the case; all sides but the plain one have encoded the anchor prompts before."""
        sizes, eot = self.sizes, self.tokens.argmax(-1).tolist()
        n_prefix = 1 + N_CTX + self.position.n_anchors
        images = image_tower(sizes, self.batch) if self.encodes_images else Cost(0, 0)
        plain_cost = plain_text(sizes, self.n_sets * self.n_classes)
        plain_cost = plain_cost.plus(plain_text(sizes, self.n_classes, backward=False))
        cut_cost = cut_text(sizes, eot, sets=self.n_sets).plus(images)
        our_cost = fast_text(sizes, eot, n_prefix, sets=self.n_sets)

        def side(name: str, objective: Objective, cost: Cost) -> Side:
            return Side(name, lambda: self.update(objective), cost)

        def cut(encoder: TextEncoder) -> Outcome:
            return self.update(partial(self.plain, encoder))

        ours = [side("ours", self.ours, our_cost.plus(images))]
        if self.encodes_images:
            cached = partial(self.ours, CachedFeatures(self.model.image_encoder))
            ours.append(side("ours, image features cached", cached, our_cost))
        part = "" if self.encodes_images else "text side, "
        return Case(
            f"{self.host}, {part}{self.n_classes} classes, batch {self.batch}",
            side("plain", partial(self.plain, self.plain_encoder), plain_cost.plus(images)),
            ours,
            cut_rivals(partial(self.encoder, is_cut=True), cut, cut_cost, self.images.device),
        )


class CoCoOpStep(CoOpStep):
    """A step of CoCoOp with AnchorOPT: a set of prompts for each image."""

    host = "CoCoOp"

    @property
    def n_sets(self) -> int:
        return self.batch

    def plain_logits(self, features: Tensor, encoder: TextEncoder) -> Tensor:
        rows = [
            scaled_cosines(self.clip, feature, encoder(prompts, self.tokens))
            for feature, prompts in zip(features, self.learner(features), strict=True)
        ]
        return torch.stack(rows)


class DeepTextEncoder(TextEncoder):
    """A text encoder for deep prompts, which overwrite the context before each prompted block.

    Args:
        clip: the plain CLIP.
        length: number of encoded tokens.
    """

    def __init__(self, clip: CLIP, length: int) -> None:
        super().__init__(clip)
        self.length = length

    def forward(  # type: ignore[override]
        self, prompts: Tensor, tokens: Tensor, deep_prompts: Sequence[Tensor], matrix: Tensor
    ) -> Tensor:
        """Return (C, e); the slots get P · [deep prompt; anchor]: matrix and anchor stay."""
        x = prompts[:, : self.length] + self.positional_embedding[: self.length].type(self.dtype)
        x, slot = x.permute(1, 0, 2), matrix[:, -1].detach()
        for number, block in enumerate(self.transformer.resblocks):
            if 0 < number <= len(deep_prompts):
                slots = x[1 : 1 + len(matrix)]
                kept = torch.einsum("i,icd->cd", slot, slots)[None]
                deep = deep_prompts[number - 1].to(x.dtype)[:, None].expand(-1, x.shape[1], -1)
                context = torch.einsum("ij,jcd->icd", matrix, torch.cat([deep, kept]))
                x = torch.cat([x[:1], context, x[1 + len(context) :]])
            x = block(x)
        x = self.ln_final(x.permute(1, 0, 2)).type(self.dtype)
        return x[torch.arange(len(x)), tokens.argmax(-1)] @ self.text_projection


class MaPLeStep(CoOpStep):
    """The text side of a step of MaPLe with AnchorOPT."""

    host = "MaPLe"
    encodes_images = False

    def encoder(self, is_cut: bool) -> TextEncoder:
        longest = int(self.tokens.argmax(-1).max()) + 1
        return DeepTextEncoder(self.clip, longest if is_cut else self.sizes.context)

    def plain_logits(self, features: Tensor, encoder: TextEncoder) -> Tensor:
        prompts, _, deep_text, _ = self.learner()
        matrix = self.position.matrix().to(prompts.dtype)
        return scaled_cosines(self.clip, features, encoder(prompts, self.tokens, deep_text, matrix))

    def our_logits(self, cached: CachedFeatures | None) -> Tensor:
        self.run.features.clear()
        self.run.features.calls.append(ImageCall(self.images, self.features))
        prompts, _, deep_text, _ = self.learner()
        text = self.model.text_encoder(prompts, self.tokens, deep_text)
        return self.model.logits(self.features, text)


def cases(bench: Bench) -> Iterator[Case]:
    """Yield a case for each host and number of classes."""
    for n_classes in bench.classes or (200,):
        yield CoOpStep(bench, n_classes, batch=32).case()
    for n_classes in bench.classes or (50,):
        yield CoCoOpStep(bench, n_classes, batch=4).case()
    if not bench.classes:
        case = CoCoOpStep(bench, 500, batch=8).case()
        yield case._replace(plain=None, ours=case.ours[:1])
    for n_classes in bench.classes or (50,):
        yield MaPLeStep(bench, n_classes, batch=4).case()


main = partial(command.main, "Training step", __doc__, cases)

if __name__ == "__main__":
    sys.exit(main())

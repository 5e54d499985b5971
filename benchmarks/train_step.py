"""A whole training step of a host with AnchorOPT: forward, backward and SGD.

Ours is the host of ``trainers/`` wired as ``@anchoropt`` does it: the fast text branch, the anchor
prompts encoded once, the image tower as in ``image_tower.py``, and in a further row the features of
pictures seen before kept. The plain side has the same objective as public code computes it: 77
tokens for every prompt, one image after the other in CoCoOp, and the anchor prompts encoded anew at
each step. Every step starts from the same weights and pictures.

CoOp and CoCoOp are whole steps with the image tower. MaPLe is its text side: image features are
given, and what lies behind the text branch is trained. CoCoOp with 500 classes and batch 8 is ours
alone: the plain way would hold 4,000 prompts of 77 tokens.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import train
from anchoropt_plugin.encoders.clip_models import CLIP
from anchoropt_plugin.encoders.feature_cache import CachedFeatures
from anchoropt_plugin.method.objective import PromptLoss
from anchoropt_plugin.training.host_parts import HostParts
from anchoropt_plugin.training.settings import AnchorOPTConfig
from anchoropt_plugin.training.stage_two import AnchorOPT
from benchmarks import command, harness
from benchmarks.harness import (
    VIT_B16,
    Bench,
    Case,
    CutTextEncoder,
    Outcome,
    PlainTextEncoder,
    Side,
    Sizes,
)
from dassl.config import get_cfg_default
from trainers import cocoop, coop, maple
from trainers.prompted_clip import PromptedCLIP, embed_prompts

N_CTX = 4
PROMPT_DEPTH = 9
MODELS = {
    "CoOp": (coop.PromptLearner, PromptedCLIP),
    "CoCoOp": (cocoop.PromptLearner, cocoop.ConditionalCLIP),
    "MaPLe": (maple.MultiModalPromptLearner, maple.MultiModalCLIP),
}

Objective = Callable[..., tuple[Tensor, Tensor]]
"""Gives the loss and the logits (B, C)."""


def host_model(host: str, class_names: Sequence[str], clip: CLIP) -> PromptedCLIP:
    """The model of a host of ``trainers/`` with four soft tokens."""
    cfg = get_cfg_default()
    train.extend_cfg(cfg)
    settings = cfg.TRAINER[host.upper()]
    settings.N_CTX, settings.CTX_INIT = N_CTX, ""
    cfg.TRAINER.MAPLE.PROMPT_DEPTH = min(PROMPT_DEPTH, len(clip.transformer.resblocks))
    learner, model = MODELS[host]
    with contextlib.redirect_stdout(io.StringIO()):
        return model(learner(cfg, class_names, clip), clip)


class Stage2:
    """A host with AnchorOPT around it, and a batch.

    Attributes:
        run: AnchorOPT in the host.
        model: the host's.
        features: of the images, L2-normalised; given where the image tower is left out.
    """

    def __init__(self, bench: Bench, host: str, n_classes: int, batch: int) -> None:
        self.sizes, self.batch, self.n_classes = bench.sizes, batch, n_classes
        settings = AnchorOPTConfig(keep_features=False)
        names = harness.class_names(n_classes)
        parts = HostParts(host, "prompt_learner", settings)
        with parts.watching():
            self.clip = bench.clip()
            self.model = host_model(host, names, self.clip).to(bench.device)
        self.learner, self.position = self.model.prompt_learner, parts.position
        self.position.anchors.copy_(0.02 * bench.random(1, bench.sizes.width))
        self.run = AnchorOPT(settings, parts, names)
        frame = embed_prompts(self.clip, [f"of {name}" for name in names], "X")
        self.anchor_tokens, self.anchor_frame = frame[0], frame[1].to(bench.device)
        self.tokens = self.model.tokenized_prompts
        self.encoder, self.cut_encoder = PlainTextEncoder(self.clip), CutTextEncoder(self.clip)
        self.images = bench.random(batch, 3, bench.sizes.resolution, bench.sizes.resolution)
        self.features = F.normalize(bench.random(batch, bench.sizes.embed_dim), dim=-1)
        self.labels = torch.arange(batch, device=bench.device) % n_classes
        self.parameters = [p for p in self.learner.parameters() if p.requires_grad]
        self.start = [p.detach().clone() for p in self.parameters]
        self.optimizer = torch.optim.SGD(self.parameters, lr=0.002, momentum=0.9, weight_decay=5e-4)

    def update(self, objective: Objective) -> Outcome:
        """One step from the weights at the start."""
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
    @torch.no_grad()
    def anchor_text(self) -> Tensor:
        """Features of the anchor prompts."""
        frame, anchors = self.anchor_frame, self.position.anchors
        context = anchors.to(frame.dtype).expand(self.n_classes, -1, -1)
        prompts = torch.cat([frame[:, :1], context, frame[:, 1 + len(anchors) :]], 1)
        return unit(self.encoder(prompts, self.anchor_tokens))

    @cached_property
    def anchor_text_once(self) -> Tensor:
        """The same, encoded once: what the rival does."""
        return self.anchor_text()

    def plain_loss(self, features: Tensor, logits: Tensor, is_cut: bool = False) -> Tensor:
        """Cross-entropy and distillation from the mean of both logits."""
        settings = self.run.settings
        with torch.no_grad():
            text = self.anchor_text_once if is_cut else self.anchor_text()
            anchor_logits = self.clip.logit_scale.exp() * features @ text.t()
            teacher = (logits + anchor_logits) / 2
        temperature = settings.kd_temperature
        divergence = F.kl_div(
            F.log_softmax(logits / temperature, -1),
            F.log_softmax(teacher / temperature, -1),
            reduction="sum",
            log_target=True,
        )
        distillation = temperature**2 * divergence / logits.numel()
        cross_entropy = F.cross_entropy(logits, self.labels)
        return settings.prompt_ce_weight * cross_entropy + settings.kd_weight * distillation

    def plain_coop(self, is_cut: bool = False) -> tuple[Tensor, Tensor]:
        """CoOp: one set of prompts."""
        encoder = self.cut_encoder if is_cut else self.encoder
        features = unit(self.clip.visual(self.images))
        text = unit(encoder(self.learner(), self.tokens))
        logits = self.clip.logit_scale.exp() * features @ text.t()
        return self.plain_loss(features, logits, is_cut), logits

    def plain_cocoop(self, is_cut: bool = False) -> tuple[Tensor, Tensor]:
        """CoCoOp: a set of prompts for each image, one after the other."""
        encoder = self.cut_encoder if is_cut else self.encoder
        features = unit(self.clip.visual(self.images))
        rows = []
        for feature, prompts in zip(features, self.learner(features), strict=True):
            text = unit(encoder(prompts, self.tokens))
            rows.append(self.clip.logit_scale.exp() * feature @ text.t())
        logits = torch.stack(rows)
        return self.plain_loss(features, logits, is_cut), logits

    def plain_maple(self, is_cut: bool = False) -> tuple[Tensor, Tensor]:
        """MaPLe's text side: before the prompted blocks the context is overwritten.

        Position matrix P and anchor outlive that: the slots get P · [deep prompt; anchor].
        """
        prompts, _, deep_text, _ = self.learner()
        eot = self.tokens.argmax(-1)
        length = int(eot.max()) + 1 if is_cut else self.sizes.context
        prompts = prompts[:, :length]
        matrix = self.position.matrix().to(prompts.dtype)
        anchor_slot = 1 + int(matrix[:, -1].argmax())
        positions = self.clip.positional_embedding[:length].to(prompts.dtype)
        x = (prompts + positions).permute(1, 0, 2)
        for number, block in enumerate(self.clip.transformer.resblocks):
            if 0 < number <= len(deep_text):
                deep = deep_text[number - 1].to(x.dtype)[:, None].expand(-1, x.shape[1], -1)
                context = torch.cat([deep, x[anchor_slot : anchor_slot + 1]])
                context = torch.einsum("ij,jcd->icd", matrix, context)
                x = torch.cat([x[:1], context, x[1 + len(context) :]])
            x = block(x)
        x = self.clip.ln_final(x.permute(1, 0, 2)).to(prompts.dtype)
        text = unit(x[torch.arange(len(x)), eot] @ self.clip.text_projection)
        logits = self.clip.logit_scale.exp() * self.features @ text.t()
        return self.plain_loss(self.features, logits, is_cut), logits

    # ------------------------------------------------------------------ ours
    def ours(self, kept: CachedFeatures | None = None) -> tuple[Tensor, Tensor]:
        """The host's own forward and cross-entropy, under AnchorOPT's objective.

        Without ``kept``, the features of no picture are known.
        """
        self.run.features.clear()
        encoder = self.model.image_encoder
        encoder.forward = kept or CachedFeatures(encoder)
        try:
            with PromptLoss(self.run.loss, self.run.is_prompt_logits):
                logits = self.model(self.images)
                loss = F.cross_entropy(logits, self.labels)
        finally:
            del encoder.forward  # it is the plain side's, too
        harness.require_in_use([self.model.text_encoder.forward])
        return loss, logits

    def ours_maple(self) -> tuple[Tensor, Tensor]:
        """MaPLe's text side."""
        self.run.features.value = self.features.float()
        with PromptLoss(self.run.loss, self.run.is_prompt_logits):
            prompts, _, deep_text, _ = self.learner()
            text = self.model.text_encoder(prompts, self.tokens, deep_text)
            logits = self.model.logits(self.features, text)
            loss = F.cross_entropy(logits, self.labels)
        harness.require_in_use([self.model.text_encoder.forward])
        return loss, logits

    # ------------------------------------------------------------------ sides of a case
    def plain_side(self, objective: Objective, sets: int = 1, images: bool = True) -> Side:
        """The plain way, with ``sets`` sets of prompts."""
        cost = harness.plain_text(self.sizes, sets * self.n_classes)
        cost = cost.plus(harness.plain_text(self.sizes, self.n_classes, backward=False))
        if images:
            cost = cost.plus(harness.image_tower(self.sizes, self.batch))
        return Side("plain", lambda: self.update(objective), cost)

    def cut_side(self, objective: Objective, sets: int = 1, images: bool = True) -> Side:
        """The plain way cut at the longest EOT; the anchor prompts were encoded before."""
        cost = harness.cut_text(self.sizes, self.tokens.argmax(-1).tolist(), sets=sets)
        if images:
            cost = cost.plus(harness.image_tower(self.sizes, self.batch))
        return Side(harness.CUT, lambda: self.update(partial(objective, is_cut=True)), cost)

    def our_side(self, objective: Objective, sets: int = 1, images: bool = True) -> Side:
        """Ours; the anchor prompts were encoded before."""
        eot = self.tokens.argmax(-1).tolist()
        n_prefix = 1 + N_CTX + self.position.n_anchors
        cost = harness.fast_text(self.sizes, eot, n_prefix, sets=sets)
        if images:
            cost = cost.plus(harness.image_tower(self.sizes, self.batch))
        return Side("ours", lambda: self.update(objective), cost)

    def kept_side(self, sets: int = 1) -> Side:
        """Ours, once every picture has been seen."""
        kept = CachedFeatures(self.model.image_encoder)
        cost = self.our_side(self.ours, sets, images=False).cost
        return Side(
            "ours, image features kept", lambda: self.update(partial(self.ours, kept)), cost
        )


def unit(features: Tensor) -> Tensor:
    """L2-normalised along the last dimension."""
    return features / features.norm(dim=-1, keepdim=True)


def cases(bench: Bench) -> Iterator[Case]:
    """One for each host and number of classes."""
    for n_classes in bench.classes or (200,):
        step = Stage2(bench, "CoOp", n_classes, batch=32)
        sides = [step.our_side(step.ours), step.kept_side()]
        plain, cut = step.plain_side(step.plain_coop), step.cut_side(step.plain_coop)
        yield Case(f"CoOp, {n_classes} classes, batch 32", plain, sides, [cut])
    for n_classes in bench.classes or (50,):
        step = Stage2(bench, "CoCoOp", n_classes, batch=4)
        sides = [step.our_side(step.ours, sets=4), step.kept_side(sets=4)]
        plain = step.plain_side(step.plain_cocoop, sets=4)
        cut = step.cut_side(step.plain_cocoop, sets=4)
        yield Case(f"CoCoOp, {n_classes} classes, batch 4", plain, sides, [cut])
    if not bench.classes:
        step = Stage2(bench, "CoCoOp", 500, batch=8)
        yield Case("CoCoOp, 500 classes, batch 8", None, [step.our_side(step.ours, sets=8)])
    for n_classes in bench.classes or (50,):
        step = Stage2(bench, "MaPLe", n_classes, batch=4)
        plain = step.plain_side(step.plain_maple, images=False)
        sides = [step.our_side(step.ours_maple, images=False)]
        cut = step.cut_side(step.plain_maple, images=False)
        yield Case(f"MaPLe, text side, {n_classes} classes, batch 4", plain, sides, [cut])


def main(arguments: Sequence[str] | None = None, sizes: Sizes = VIT_B16) -> int:
    """The command line; returns the exit status."""
    return command.main("Training step", __doc__, cases, arguments, sizes)


if __name__ == "__main__":
    sys.exit(main())

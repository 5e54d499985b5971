"""The decorator on hosts written like public ones of other kinds than those in ``trainers``."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anchoropt_plugin import anchoropt, register_hook
from anchoropt_plugin.clip_models import load_clip
from anchoropt_plugin.hooks import PromptHook
from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.optim import build_lr_scheduler, build_optimizer
from trainers.coop import PromptLearner
from trainers.host import PromptedCLIP, PromptTrainer

from .test_plugin import build, root, run, weights

__all__ = ["root"]

M, DEPTH = 4, 3
KEYS = ["TRAINER.ANCHOROPT.POSITION_INIT", "0.0"]


class PromptedBlock(nn.Module):
    """A block of CLIP that holds a deep prompt of its own, as in IVLP's fork."""

    def __init__(self, plain, n_prompts, text_layer):
        super().__init__()
        self.attn, self.ln_1, self.mlp, self.ln_2 = plain.attn, plain.ln_1, plain.mlp, plain.ln_2
        self.attn_mask, self.text_layer = plain.attn_mask, text_layer
        width = plain.ln_1.weight.shape[0]
        self.VPT_shallow = nn.Parameter(0.1 * torch.randn(n_prompts, width)) if n_prompts else None

    def attention(self, x):
        mask = self.attn_mask
        return self.attn(x, x, x, need_weights=False, attn_mask=mask)[0]

    def forward(self, x):
        if self.VPT_shallow is not None:
            prompt = self.VPT_shallow.half().to(x.dtype)[:, None].expand(-1, x.shape[1], -1)
            if self.text_layer:
                x = torch.cat([x[:1], prompt, x[1 + len(prompt) :]])
            else:
                x = torch.cat([x[: -len(prompt)], prompt])
        x = x + self.attention(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class PromptedVision(nn.Module):
    """CLIP's image transformer with prompts of its own behind the patches."""

    def __init__(self, visual):
        super().__init__()
        names = "conv1", "class_embedding", "positional_embedding", "ln_pre", "ln_post", "proj"
        for name in (*names, "transformer", "input_resolution", "output_dim"):
            setattr(self, name, getattr(visual, name))
        self.VPT = nn.Parameter(0.1 * torch.randn(2, visual.class_embedding.shape[0]))

    def forward(self, x):
        x = self.conv1(x).flatten(2).permute(0, 2, 1)
        x = torch.cat([self.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], 1)
        prompts = self.VPT.to(x.dtype).expand(len(x), -1, -1)
        x = torch.cat([x + self.positional_embedding.to(x.dtype), prompts], 1)
        x = self.transformer(self.ln_pre(x).permute(1, 0, 2))
        return self.ln_post(x[0]) @ self.proj


def forked(clip, n_prompts=M):
    """The CLIP with deep prompts in the blocks of both towers."""
    clip.visual = PromptedVision(clip.visual)
    towers = (clip.transformer, n_prompts, True), (clip.visual.transformer, 2, False)
    for tower, n, text in towers:
        blocks = [
            PromptedBlock(block, n if 0 < i < DEPTH else 0, text)
            for i, block in enumerate(tower.resblocks)
        ]
        tower.resblocks = nn.Sequential(*blocks)
    return clip


class LossInside(PromptedCLIP):
    def forward(self, image, label=None):
        logits = super().forward(image)
        return F.cross_entropy(logits, label) if self.prompt_learner.training else logits


@anchoropt
@TRAINER_REGISTRY.register()
class IndependentLike(TrainerX):
    """Prompts in the blocks of both towers, its loss inside the model, all of that saved."""

    def build_model(self):
        torch.manual_seed(0)
        clip = forked(load_clip("tiny"))
        self.model = LossInside(PromptLearner(self.cfg, self.dm.dataset.classnames, clip), clip)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_("prompt_learner" in name or "VPT" in name)
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("Learner", self.model, self.optim, self.sched)

    def forward_backward(self, batch):
        loss = self.model(*self.parse_batch_train(batch))
        self.model_backward_and_update(loss)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item()}

    parse_batch_train = PromptTrainer.parse_batch_train


def test_a_fork_whose_blocks_hold_the_prompts(root, tmp_path):
    run(root, tmp_path / "out", trainer="IndependentLike_AnchorOPT", keys=KEYS)
    trained = weights(tmp_path / "out", name="Learner")
    trainer = build(root, tmp_path / "out", trainer="IndependentLike_AnchorOPT", keys=KEYS)
    start = trainer.model.state_dict()
    moved = {key for key, value in trained.items() if not torch.equal(value, start[key])}
    prompts = {key for key in trained if "VPT" in key}
    assert len(prompts) == 2 * (DEPTH - 1) + 1
    own = {"prompt_learner.ctx", "prompt_learner.anchoropt.logits"}
    # The anchors are not there yet in a trainer that was only built.
    assert moved - {"prompt_learner.anchoropt.anchors"} == prompts | own


def test_its_layout_at_every_block_and_its_teacher(root, tmp_path):
    """The anchor's hidden states are carried over by hand, in the order of a drawn matrix."""
    trainer = build(root, tmp_path, trainer="IndependentLike_AnchorOPT", keys=KEYS)
    trainer.anchoropt_stage_one()
    model, run_ = trainer.model, trainer.anchoropt
    trainer.set_model_mode("train")
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        prompts = model.prompt_learner()
        order = run_.position.matrix().argmax(-1).tolist()
        assert sorted(order) == list(range(M + 1)) != order
        got = model.text_encoder(prompts, model.tokenized_prompts)
        x = (prompts + model.text_encoder.positional_embedding).permute(1, 0, 2)
        for number, block in enumerate(model.text_encoder.transformer.resblocks):
            if 0 < number < DEPTH:
                rows = x.clone()
                for slot, token in enumerate(order):
                    soft = token < M
                    x[1 + slot] = block.VPT_shallow[token].half() if soft else rows[1 + slot]
            x = x + block.attention(block.ln_1(x))
            x = x + block.mlp(block.ln_2(x))
        x = model.text_encoder.ln_final(x.permute(1, 0, 2))
        eot = model.tokenized_prompts.argmax(-1)
        want = x[torch.arange(len(x)), eot] @ model.text_encoder.text_projection
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
        run_.features.clear()
        prompted = model.image_encoder(images)
        teacher = F.normalize(load_clip("tiny").encode_image(images), dim=-1)
    torch.testing.assert_close(run_.features.value, teacher, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(F.normalize(prompted, dim=-1), teacher, atol=1e-2)


class Odd(PromptLearner):
    """For a hook of its own."""


class OddHook(PromptHook):
    def is_prompt_logits(self, logits: Tensor, n_images: int, n_classes: int) -> bool:
        return super().is_prompt_logits(logits, n_images, n_classes) and bool(logits.any())

    def plain_features(self, encoder, args, output) -> Tensor:
        return torch.ones_like(output)


register_hook(Odd, OddHook())


@anchoropt
@TRAINER_REGISTRY.register()
class OddHost(PromptTrainer):
    """Its first cross-entropy looks like the prompt's and is not."""

    node = "COOP"

    def build_learner(self, class_names, clip):
        return Odd(self.cfg, class_names, clip)

    def forward_backward(self, batch):
        image, label = self.parse_batch_train(batch)
        output = self.model(image)
        other = F.cross_entropy(torch.zeros_like(output), label)
        prompt = F.cross_entropy(output, label)
        return {"other": other.item(), "prompt": prompt.item(), "logits": output.detach()}


def test_a_hook_says_which_loss_is_the_prompt_s_and_which_features_are_plain(root, tmp_path):
    keys = ["TRAINER.ANCHOROPT.KD_WEIGHT", "0", "TRAINER.ANCHOROPT.PROMPT_CE_WEIGHT", "3"]
    trainer = build(root, tmp_path, trainer="OddHost_AnchorOPT", keys=keys)
    trainer.anchoropt_stage_one()
    batch = next(iter(trainer.train_loader_x))
    summary = trainer.forward_backward(batch)
    plain = F.cross_entropy(summary["logits"], batch["label"]).item()
    assert summary["prompt"] == pytest.approx(3 * plain, rel=1e-5)
    assert trainer.anchoropt.features.value.unique().numel() == 1

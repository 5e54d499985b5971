"""Encoders that stage 2 cannot use are refused before stage 1; others are tried without a trace."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import train
from anchoropt_plugin.encoders.clip_models import load_clip
from anchoropt_plugin.process.randomness import random_state
from anchoropt_plugin.training.rehearsal import rehearse
from dassl.engine import TRAINER_REGISTRY
from dassl.optim import build_lr_scheduler, build_optimizer
from trainers.coop import PromptLearner
from trainers.prompted_clip import PromptedCLIP, TextEncoder

from .test_host_parts import odd_host
from .test_two_stages import build, command, root, run, weights

__all__ = ["root"]


class LocalFeatures(nn.Module):
    """PLOT: the features of the whole image and of its regions, (1 + P, N, e)."""

    def __init__(self, visual):
        super().__init__()
        self.visual, self.conv1 = visual, visual.conv1

    def forward(self, images):
        return torch.stack([self.visual(images), self.visual(images.flip(-1))])


class WithRegions(PromptedCLIP):
    def features(self, image):
        images, texts = super().features(image)
        return images.mean(0), texts


class AddsClassFeatures(TextEncoder):
    """TCP: features of each class are added to hidden states before the second block."""

    def forward(self, prompts, class_features, weight, tokens):
        x = (prompts + self.positional_embedding).permute(1, 0, 2)
        for number, block in enumerate(self.transformer.resblocks):
            x = block(x if number != 1 else x + weight * class_features)
        x = self.ln_final(x.permute(1, 0, 2))
        return x[torch.arange(len(x)), tokens.argmax(-1)] @ self.text_projection


class WithClassFeatures(PromptedCLIP):
    def __init__(self, learner, clip):
        super().__init__(learner, clip)
        self.text_encoder = AddsClassFeatures(clip)

    def features(self, image):
        prompts = self.prompt_learner()
        vectors = torch.ones(prompts.shape[0], prompts.shape[-1])
        texts = self.text_encoder(prompts, vectors, 0.5, self.tokenized_prompts)
        return self.image_encoder(image), texts


def host_with(name, model, visual=None, **members):
    def build_model(self):
        self.amp, clip = False, load_clip("tiny")
        self.scaler = torch.amp.GradScaler("cpu", enabled=False)
        if visual is not None:
            clip.visual = visual(clip.visual)
            clip.load_state_dict(clip.state_dict())  # PLOT's CLIP has such a tower from the start
        self.model = model(PromptLearner(self.cfg, self.dm.dataset.classnames, clip), clip)
        for parameter_name, parameter in self.model.named_parameters():
            parameter.requires_grad_("prompt_learner" in parameter_name)
        self.optim = build_optimizer(self.model.prompt_learner, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("prompt_learner", self.model.prompt_learner, self.optim, self.sched)

    return odd_host(name, build_model=build_model, **members)


@pytest.mark.parametrize(
    ("model", "visual", "message"),
    [
        (WithClassFeatures, None, "AddsClassFeatures changes hidden states before text block 1"),
        (WithRegions, LocalFeatures, "the image encoder returns features of the shape (2, 2, "),
    ],
    ids=["TCP", "PLOT"],
)
def test_an_encoder_that_cannot_be_used_is_refused_before_stage_one(
    root, tmp_path, capsys, model, visual, message
):
    name = host_with(model.__name__, model, visual)
    keys = ["TRAINER.ANCHOROPT.ANCHOR_CACHE", str(tmp_path / "cache")]  # other tests share one
    assert train.main(command(root, tmp_path / "out", name, keys=keys)) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert "stage 1 epoch" not in printed.out
    assert not (tmp_path / "cache").exists() and not list(tmp_path.rglob("checkpoint"))


def test_a_host_that_cannot_be_tested_yet_is_trained(root, tmp_path):
    """Its model needs an epoch, or cannot be copied: the first step checks the same."""

    def model_inference(self, images):
        if not hasattr(self, "epoch"):
            raise RuntimeError("not trained yet")
        return TRAINER_REGISTRY.get("CoOp").model_inference(self, images)

    run(root, tmp_path / "a", host_with("NotYet", PromptedCLIP, model_inference=model_inference))
    run(root, tmp_path / "b", host_with("AtOnce", PromptedCLIP))
    ours, others = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(value, others[name]) for name, value in ours.items())


def test_nothing_of_the_host_and_no_random_number_changes(root, tmp_path):
    trainer = build(root, tmp_path, "CoOp_AnchorOPT")
    before, random = trainer.model.training, random_state()
    state = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    seen = []
    forward = trainer.model.text_encoder.forward

    def inference(images):
        assert trainer.model.text_encoder.forward is not forward
        torch.rand(1)
        seen.append(trainer.model(images))

    rehearse(trainer, inference)
    assert seen[0].shape == (2, trainer.num_classes)
    assert forward.error is None and not forward._deep and not trainer.anchoropt.features.calls
    assert trainer.model.training is before
    assert all(torch.equal(state[name], x) for name, x in trainer.model.state_dict().items())
    assert torch.equal(random_state()["torch"], random["torch"])

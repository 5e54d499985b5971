"""The fast text branch against the plain one: every host, precision and length of class names."""

from __future__ import annotations

import pytest
import torch
from clip.model import CLIP, convert_weights

import train
from anchoropt_plugin import attach
from anchoropt_plugin.config.merge import merge_list
from anchoropt_plugin.encoders.accelerate import install, is_text_encoder
from anchoropt_plugin.prompts.anchored_encoder import AnchoredEncoder
from anchoropt_plugin.prompts.attachment import attachment_of
from dassl.config import get_cfg_default
from trainers import atprompt, cocoop, coop, dept, maple
from trainers.prompted_clip import PromptedCLIP

from ..training.test_host_parts import forked

N_CTX = 2
LONGEST = 77 - 3 - N_CTX - 1
"""Tokens of the longest class name: 77 less SOS, context, anchor, full stop and EOT."""
NAMES = {
    "one token to some": ["cat", "golden retriever", "grand piano player on a roof", "dog"],
    "to the limit": ["cat", " ".join(["cat"] * LONGEST)],
    "repeated": ["cat", "dog", "cat", "cat"],
    "one class": ["golden retriever"],
}
ATTRIBUTES = ["TRAINER.ATPROMPT.USE_ATPROMPT", "True", "TRAINER.ATPROMPT.ATT_NUM", "1"]
ATTRIBUTES += ["TRAINER.ATPROMPT.ATT1_TEXT", "color", "TRAINER.ATPROMPT.N_ATT1", str(N_CTX)]
SLOTS = N_CTX + 1
"""Slots of an attribute: its soft tokens and the word."""


def small_clip():
    torch.manual_seed(0)
    clip = CLIP(64, 32, 3, 128, 8, 77, 49408, 64, 4, 3)
    return clip.float().eval().requires_grad_(False)


def settings(*keys):
    cfg = get_cfg_default()
    train.extend_cfg(cfg)
    contexts = (f"TRAINER.{node}.N_CTX" for node in ("COOP", "COCOOP", "MAPLE"))
    lengths = [word for key in contexts for word in (key, str(N_CTX))]
    merge_list(
        cfg, ["TRAINER.MAPLE.PROMPT_DEPTH", "3", "TRAINER.MAPLE.CTX_INIT", "", *lengths, *keys]
    )
    return cfg


HOSTS = {
    "CoOp": lambda clip, names: PromptedCLIP(coop.PromptLearner(settings(), names, clip), clip),
    "CoOp, class-specific": lambda clip, names: PromptedCLIP(
        coop.PromptLearner(settings("TRAINER.COOP.CSC", "True"), names, clip), clip
    ),
    "CoCoOp": lambda clip, names: cocoop.ConditionalCLIP(
        cocoop.PromptLearner(settings(), names, clip), clip
    ),
    "MaPLe": lambda clip, names: maple.MultiModalCLIP(
        maple.MultiModalPromptLearner(settings(), names, clip), clip
    ),
    "DePT": lambda clip, names: dept.TwoHeadedCLIP(
        settings(), coop.PromptLearner(settings(), names, clip), clip
    ),
    "CoOp_ATP": lambda clip, names: PromptedCLIP(
        atprompt.CoOpLearner(settings(*ATTRIBUTES), names, clip), clip
    ),
    "MaPLe_ATP": lambda clip, names: maple.MultiModalCLIP(
        atprompt.MaPLeLearner(settings(*ATTRIBUTES), names, clip), clip
    ),
    "prompts held by the blocks": lambda clip, names: PromptedCLIP(
        coop.PromptLearner(settings(), names, clip), forked(clip, N_CTX)
    ),
}


def in_half(clip, dtype):
    """Convert the weights that CLIP keeps in half precision to ``dtype``."""
    convert_weights(clip)
    for parameter in clip.parameters():
        if parameter.dtype == torch.float16:
            parameter.data = parameter.data.to(dtype)
    return clip


def outcome(host, names, dtype, autocast, fast, anchors):
    """Return logits and gradients of all learned parameters, and whether the branch was used."""
    clip = small_clip() if dtype == torch.float32 else in_half(small_clip(), dtype)
    torch.manual_seed(1)
    model = HOSTS[host](clip, names)
    learner = model.prompt_learner.requires_grad_(True)
    if anchors:
        attach(learner, torch.randn(1, 64).mul(0.02), relaxation="identity")
    prompts = AnchoredEncoder(attachment_of(learner))
    encoders = [module for module in model.modules() if is_text_encoder(module)]
    forwards = [install(encoder, prompts=prompts, in_use=fast) for encoder in encoders]
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = model(images)
    parameters = [p for p in learner.parameters() if p.requires_grad]
    generator = torch.Generator().manual_seed(3)
    upstream = torch.randn(logits.shape, generator=generator).to(logits.dtype)
    gradients = torch.autograd.grad(logits, parameters, upstream, allow_unused=True)
    as_asked = all(forward.in_use == fast for forward in forwards)
    return [logits, *(g for g in gradients if g is not None)], as_asked


def off(got, want):
    """Return the relative error over all tensors."""
    got, want = (torch.cat([x.detach().float().flatten() for x in xs]) for xs in (got, want))
    return float((got - want).norm() / want.norm())


def fits(host, names):
    room = 77 - 3 - N_CTX - 1 - (SLOTS if "ATP" in host else 0)
    return max(len(name.split()) for name in names) <= room


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("kind", NAMES)
def test_in_full_precision_logits_and_gradients_are_equal(host, kind):
    names = NAMES[kind]
    if not fits(host, names):
        names = [name[: -4 * SLOTS] if len(name) > 200 else name for name in names]
    for anchors in (False, True):
        slow, _ = outcome(host, names, torch.float32, False, fast=False, anchors=anchors)
        fast, in_use = outcome(host, names, torch.float32, False, fast=True, anchors=anchors)
        assert in_use and off(fast, slow) <= 1e-5


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, "autocast"])
def test_in_half_precision_the_error_is_that_of_the_plain_branch(host, dtype):
    autocast = dtype == "autocast"
    dtype = torch.float32 if autocast else dtype
    names = NAMES["one token to some"]
    truth, _ = outcome(host, names, torch.float32, False, fast=False, anchors=True)
    slow, _ = outcome(host, names, dtype, autocast, fast=False, anchors=True)
    fast, in_use = outcome(host, names, dtype, autocast, fast=True, anchors=True)
    assert in_use and off(fast, truth) <= 1.5 * off(slow, truth) + 1e-3

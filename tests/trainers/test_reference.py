"""``PRESET reference``: the released method, computed the slow way, for 80 steps of each host.

The slow way follows the description of the method: full prompts of 77 tokens, every block, the
objective and SGD written out, and its own draws of the position matrix from the same seeds.
"""

from __future__ import annotations

import pytest
import torch
from clip.model import CLIP
from torch.nn import functional as F

from anchoropt_plugin import AnchorTokens
from anchoropt_plugin.encoders.clip_models import tokenize
from trainers import cocoop, prompted_clip

from .runs import build

STEPS, N_CTX, LR, MOMENTUM, DECAY = 80, 3, 0.01, 0.9, 5e-4
NAMES = ["zero", "one", "two", "three", "four"]
CE, KD, T = 2.0, 5.0, 2.0
WEIGHT = 0.7
"""Of DePT's second head."""
HOSTS = {"CoOp": "COOP", "CoCoOp": "COCOOP", "MaPLe": "MAPLE", "DePT": "COOP"}
WB = "weight", "bias"
BATCH = {"CoOp": 4, "CoCoOp": 2, "MaPLe": 4, "DePT": 4}


def new_clip():
    return CLIP(32, 32, 3, 64, 8, 77, 49408, 64, 4, 3).float().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    clip = new_clip()
    # Random towers give all classes and images nearly the same features.
    torch.nn.init.normal_(clip.token_embedding.weight, std=0.5)
    clip.visual.conv1.weight.mul_(20)
    return clip


def released(root, out, host, clip, monkeypatch, *keys):
    """Return the trainer of a host under the preset, with anchors and moved initial weights."""

    def loaded(cfg):
        own = new_clip()
        own.load_state_dict(clip.state_dict())
        return own

    monkeypatch.setattr(prompted_clip, "load_backbone", loaded)
    settings = {
        "TRAINER.ANCHOROPT.PRESET": "reference",
        "TRAINER.ANCHOROPT.N_CTX": N_CTX,
        "TRAINER.ANCHOROPT.PROMPT_CE_WEIGHT": CE,
        "TRAINER.ANCHOROPT.KD_WEIGHT": 0 if host == "DePT" else KD,
        "TRAINER.ANCHOROPT.KD_TEMPERATURE": T,
        f"TRAINER.{HOSTS[host]}.CTX_INIT": "",
        "TRAINER.LINEAR_PROBE.WEIGHT": WEIGHT,
        "OPTIM.STAGED_LR": False,
        "OPTIM.LR": LR,
        "OPTIM.WARMUP_EPOCH": -1,
    }
    words = [str(word) for pair in settings.items() for word in pair]
    trainer = build(root, out, f"{host}_AnchorOPT", keys=[*words, *keys])
    torch.manual_seed(1)
    trainer.anchoropt.set_anchors(AnchorTokens(torch.randn(1, 64)))
    with torch.no_grad():  # so that parts that start equal, or at the identity, matter
        for parameter in trained(trainer).values():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    trainer.set_model_mode("train")
    trainer.num_batches = 10**9
    return trainer


def trained(trainer):
    """The parameters of the learner and, for DePT, of the second head, by name."""
    (module,) = trainer._models.values()
    return {
        name.removeprefix("prompt_learner."): parameter
        for name, parameter in module.named_parameters()
    }


def batches(n):
    generator = torch.Generator().manual_seed(2)
    for _ in range(STEPS):
        images = torch.randn(n, 3, 32, 32, generator=generator)
        yield images, torch.randint(0, len(NAMES), (n,), generator=generator)


class Plain:
    """The released hosts, written out for a CLIP."""

    def __init__(self, host, clip, anchor):
        self.host, self.clip, self.anchor = host, clip, anchor
        words = " ".join(["X"] * N_CTX)
        self.tokens = tokenize([f"{words} {name}." for name in NAMES])
        self.embedded = clip.token_embedding(self.tokens)
        tokens = tokenize([f"X of {name}." for name in NAMES])
        prompts = clip.token_embedding(tokens)
        prompts[:, 1] = anchor[0]
        self.anchor_features = F.normalize(self.text(prompts, tokens.argmax(-1)), dim=-1)

    def draw(self, logits):
        """Gumbel-softmax of independent rows, hard and straight-through."""
        noise = -torch.empty_like(logits).exponential_().log()
        soft = (logits + noise).softmax(-1)
        hard = F.one_hot(soft.argmax(-1), len(soft)).float()
        return hard - soft.detach() + soft

    def text(self, prompts, ends, deep=(), matrix=None):
        """Features (C, e) of prompts (C, 77, d), read at ``ends``."""
        x = (prompts + self.clip.positional_embedding).permute(1, 0, 2)
        for number, block in enumerate(self.clip.transformer.resblocks):
            if 0 < number <= len(deep):
                x = self.deep_context(x, deep[number - 1], matrix)
            x = block(x)
        x = self.clip.ln_final(x.permute(1, 0, 2))
        return x[torch.arange(len(x)), ends] @ self.clip.text_projection

    def deep_context(self, x, deep, matrix):
        """The context of a deep layer; row 0 of ``x`` (77, C, d) is SOS, but is read as slot 0."""
        deep = deep[:, None].expand(-1, x.shape[1], -1)
        slots = (matrix[:, -1] == 1).nonzero().flatten().tolist()
        if slots:
            tokens, used = torch.cat([deep, x[slots[0]][None]]), matrix
        else:
            tokens, used = deep, matrix[:, :-1]
        context = torch.einsum("ij,jcd->icd", used, tokens)
        return torch.cat([x[:1], context, x[1 + len(context) :]])

    def prompts(self, ctx, matrix):
        """``[SOS] P · [V; A] [class] . [EOT]``, one pad token shorter; and the old place of EOT."""
        context = (matrix @ torch.cat([ctx, self.anchor])).expand(len(NAMES), -1, -1)
        parts = self.embedded[:, :1], context, self.embedded[:, 1 + N_CTX : -1]
        return torch.cat(parts, 1), self.tokens.argmax(-1)

    def image(self, images, shared=None, deep=()):
        visual = self.clip.visual
        x = visual.conv1(images).flatten(2).permute(0, 2, 1)
        x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], 1)
        x = x + visual.positional_embedding
        patches = x.shape[1]
        if shared is not None:
            x = torch.cat([x, shared.expand(len(x), -1, -1)], 1)
        x = visual.ln_pre(x).permute(1, 0, 2)
        for number, block in enumerate(visual.transformer.resblocks):
            if 0 < number <= len(deep):
                x = torch.cat([x[:patches], deep[number - 1][:, None].expand(-1, len(images), -1)])
            x = block(x)
        return visual.ln_post(x[0]) @ visual.proj

    def features(self, p, matrix, images):
        """Image features (B, e) and prompt features (C, e), or (B, C, e) of CoCoOp."""
        if self.host == "CoCoOp":
            image = self.image(images)
            texts = []
            for feature in F.normalize(image, dim=-1):
                hidden = (
                    p["meta_net.linear1.weight"] @ feature + p["meta_net.linear1.bias"]
                ).relu()
                shift = p["meta_net.linear2.weight"] @ hidden + p["meta_net.linear2.bias"]
                texts.append(self.text(*self.prompts(p["ctx"] + shift, matrix)))
            return image, torch.stack(texts)
        if self.host == "MaPLe":
            deep = [p[f"compound_prompts_text.{i}"] for i in range(2)]
            projected = [
                F.linear(prompt, *(p[f"compound_prompt_projections.{i}.{x}"] for x in WB))
                for i, prompt in enumerate(deep)
            ]
            shared = F.linear(p["ctx"], *(p[f"proj.{x}"] for x in WB))
            text = self.text(*self.prompts(p["ctx"], matrix), deep, matrix)
            return self.image(images, shared, projected), text
        return self.image(images), self.text(*self.prompts(p["ctx"], matrix))

    def cosines(self, image, text):
        image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
        return self.clip.logit_scale.exp() * (image[:, None] * text).sum(-1)

    def loss(self, p, matrix, images, labels):
        image, text = self.features(p, matrix, images)
        logits = self.cosines(image, text)
        cross_entropy = F.cross_entropy(logits, labels)
        if self.host == "DePT":
            seen = p["film_lp_img.scale"] * image + p["film_lp_img.bias"]
            read = p["film_lp_text.scale"] * text + p["film_lp_text.bias"]
            second = torch.cat([read[labels], seen])
            second = F.linear(second, *(p[f"linear_probe_proj.{x}"] for x in WB))
            other = F.cross_entropy(second, torch.cat([labels, labels]))
            return CE * ((1 - WEIGHT) * cross_entropy + WEIGHT * other)
        anchor_logits = self.cosines(self.image(images), self.anchor_features)
        teacher = ((logits + anchor_logits) / 2).detach()
        student = (logits / T).log_softmax(1)
        divergence = F.kl_div(student, (teacher / T).softmax(1), reduction="sum")
        return CE * cross_entropy + KD * divergence * T * T / logits.numel()


def frozen(host, name):
    """The released CoCoOp optimises its context, and logits that require no gradient."""
    return host == "CoCoOp" and name != "ctx"


@pytest.mark.parametrize("host", HOSTS)
def test_eighty_steps_are_those_of_the_released_method(root, tmp_path, clip, monkeypatch, host):
    trainer = released(root, tmp_path, host, clip, monkeypatch)
    position = trainer.anchoropt.position
    plain = Plain(host, clip, position.anchors.clone())
    here = {name: value.detach().clone() for name, value in trained(trainer).items()}
    learned = [name for name in here if not frozen(host, name)]
    momenta = {}
    for step, (images, labels) in enumerate(batches(BATCH[host])):
        torch.manual_seed(step)
        trainer.batch_idx = step
        loss = float(trainer.forward_backward({"img": images, "label": labels})["loss"])
        torch.manual_seed(step)
        for name in learned:
            here[name].requires_grad_(True)
        matrix = plain.draw(here["anchoropt.logits"])
        assert torch.equal(position.matrix(), matrix), step
        expected = plain.loss(here, matrix, images, labels)
        assert loss == pytest.approx(expected.item(), rel=1e-4), step
        gradients = torch.autograd.grad(expected, [here[name] for name in learned])
        for name, gradient in zip(learned, gradients, strict=True):
            value = here[name].detach()
            gradient = gradient + DECAY * value
            momenta[name] = MOMENTUM * momenta[name] + gradient if step else gradient
            here[name] = value - LR * momenta[name]
    for name, parameter in trained(trainer).items():
        torch.testing.assert_close(parameter.detach(), here[name], rtol=1e-3, atol=1e-4)


def test_an_evaluation_draws_one_matrix_for_a_batch(root, tmp_path, clip, monkeypatch):
    trainer = released(root, tmp_path, "CoCoOp", clip, monkeypatch)
    monkeypatch.setattr(cocoop, "PROMPTS_AT_ONCE", 10)  # two images of five classes
    plain = Plain("CoCoOp", clip, trainer.anchoropt.position.anchors.clone())
    trainer.set_model_mode("eval")
    here, (images, _) = trained(trainer), next(batches(7))
    with torch.no_grad():
        for seed in range(2):
            torch.manual_seed(seed)
            logits = trainer.model_inference(images)
            torch.manual_seed(seed)
            matrix = plain.draw(here["anchoropt.logits"])
            expected = plain.cosines(*plain.features(here, matrix, images))
            torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


FROZEN = {
    "POSITION_TRAINED": ["anchoropt.logits"],
    "MODULES_TRAINED": [f"meta_net.{layer}.{x}" for layer in ("linear1", "linear2") for x in WB],
    "": [],
}


@pytest.mark.parametrize("switch", FROZEN)
def test_what_the_released_cocoop_does_not_train_are_two_switches(root, tmp_path, switch):
    keys = [f"TRAINER.ANCHOROPT.{switch}", "False"] if switch else []
    trainer = build(root, tmp_path, "CoCoOp_AnchorOPT", keys=keys)
    before = {name: value.detach().clone() for name, value in trained(trainer).items()}
    trainer.train()
    same = {name for name, value in trained(trainer).items() if torch.equal(value, before[name])}
    assert same == {*FROZEN[switch]}

"""Each host with AnchorOPT beside a slow float64 computation without code of the project."""

from __future__ import annotations

import pytest
import torch
from clip import tokenize
from clip.model import LayerNorm
from torch import nn

from trainers import prompted_clip

from ..training import slow
from ..training.test_probe import assert_close
from .runs import build

CE, KD, TEMPERATURE = 10.0, 10.0, 2.0
KEYS = {"ANCHOR": "random", "POSITION_INIT": 1.0, "POSITION_INIT_STD": 0.5, "ENSEMBLE": "always"}
KEYS |= {"PROMPT_CE_WEIGHT": CE, "KD_WEIGHT": KD, "KD_TEMPERATURE": TEMPERATURE}
HOSTS = ("CoOp", "CoCoOp", "MaPLe", "DePT")
ATTRIBUTES = ["TRAINER.ATPROMPT.USE_ATPROMPT", "True", "TRAINER.ATPROMPT.ATT_NUM", "1"]
ATTRIBUTES += ["TRAINER.ATPROMPT.ATT1_TEXT", "shape"]


class Slow:
    """The weights of a host in float64 by CLIP's names, and its logits written out."""

    def __init__(self, trainer, position):
        model = trainer.model
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        self.learned, self.p = {}, {}
        for name, value in model.state_dict().items():
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                own = value.detach().double().clone().requires_grad_(name in trained)
                if name in trained:
                    self.learned[name] = own
                name = name.replace("image_encoder.visual.", "visual.")
                name = name.replace("image_encoder.", "visual.").replace("text_encoder.", "")
                self.p[name.removeprefix("prompt_learner.")] = own
        embedding = trainer.anchoropt.tower.clip.token_embedding.weight
        self.p["token_embedding.weight"] = embedding.detach().double()
        self.eots = (model.tokenized_prompts.argmax(-1)).tolist()  # behind the anchors
        encoders = model.text_encoder, getattr(model.image_encoder, "visual", model.image_encoder)
        self.text_heads, self.image_heads = (
            encoder.transformer.resblocks[0].attn.num_heads for encoder in encoders
        )
        self.names, self.position = trainer.dm.dataset.classnames, position
        self.deep_start = getattr(model.text_encoder, "deep_start", 0)

    def linear(self, x, name):
        return slow.linear(x, self.p, f"{name}.")

    def deep(self):
        n = sum("compound_prompts_text." in name for name in self.p)
        return [self.p[f"compound_prompts_text.{i}"] for i in range(n)]

    def text(self, c, ctx):
        p, deep = self.p, self.deep()
        parts = [p[name] for name in ("ctx_att1",) if name in p and "token_middle1" in p]
        parts += [p["token_middle1"][c]] if parts else []
        context, anchors = torch.cat([*parts, ctx]), p["anchoropt.anchors"]
        matrix = slow.softmax(p["anchoropt.logits"])
        if self.position == "identity":
            matrix = torch.eye(len(matrix)).double()
        suffix = p["token_suffix"][c]
        prompt = slow.arranged(p["token_prefix"][c], context, anchors, matrix, suffix)

        def rewrite(i, x):
            if not 0 < i <= len(deep):
                return x
            first = 1 + self.deep_start
            return torch.cat([x[:first], deep[i - 1], x[first + len(ctx) :]])

        return slow.text_feature(prompt, self.eots[c], p, self.text_heads, rewrite)

    def image(self, image):
        return slow.image_feature(image.double(), self.p, self.image_heads)

    def prompted_image(self, image):
        if "proj.weight" not in self.p:
            return self.image(image)
        deep = [
            self.linear(x, f"compound_prompt_projections.{i}") for i, x in enumerate(self.deep())
        ]
        prompts = self.linear(self.p["ctx"], "proj")
        return slow.image_feature(image.double(), self.p, self.image_heads, prompts, deep)

    def texts(self, image):
        ctx = self.p["ctx"]
        if "meta_net.linear1.weight" in self.p:
            hidden = self.linear(slow.unit(image), "meta_net.linear1").clamp(min=0)
            ctx = ctx + self.linear(hidden, "meta_net.linear2")
        return torch.stack([self.text(c, ctx) for c in range(len(self.names))])

    def l_n(self, images):
        rows = []
        for image in images:
            feature = self.prompted_image(image)
            texts = self.texts(feature)
            rows.append(slow.logits(feature[None], texts, self.p["logit_scale"])[0])
        return torch.stack(rows)

    @torch.no_grad()
    def l_a(self, images):
        anchors = self.p["anchoropt.anchors"]
        texts = [
            slow.anchor_feature(anchors, name, tokenize, self.p, self.text_heads)
            for name in self.names
        ]
        features = torch.stack([self.image(image) for image in images])
        return slow.logits(features, torch.stack(texts), self.p["logit_scale"])

    def loss(self, images, labels):
        l_n, l_a = self.l_n(images), self.l_a(images)
        loss = slow.objective(l_n, l_a, labels, CE, KD, TEMPERATURE).mean()
        if "linear_probe_proj.weight" not in self.p:
            return loss
        p = self.p
        image = torch.stack([self.image(x) for x in images])
        text = self.texts(None)[labels]
        rows = torch.cat(
            [
                x * p[f"film_lp_{kind}.scale"] + p[f"film_lp_{kind}.bias"]
                for kind, x in (("text", text), ("img", image))
            ]
        )
        second = slow.cross_entropy(self.linear(rows, "linear_probe_proj"), labels.repeat(2))
        return 0.3 * loss + 0.7 * CE * second.mean()


@pytest.mark.parametrize("name", [*HOSTS, *(f"{host}_ATP" for host in HOSTS)])
def test_loss_gradients_and_test_outputs(root, tmp_path, monkeypatch, name):
    monkeypatch.setattr(LayerNorm, "forward", nn.LayerNorm.forward)  # OpenAI's rounds to float32
    monkeypatch.setattr(prompted_clip, "to_precision", lambda clip, *given: clip.double())
    # A soft matrix mixes tokens; what deep prompts leave of them then, other tests say.
    position = "identity" if name.startswith("MaPLe") else "soft"
    settings = {**KEYS, "POSITION": position}
    keys = [
        word for k, value in settings.items() for word in (f"TRAINER.ANCHOROPT.{k}", str(value))
    ]
    keys += ["TRAINER.LINEAR_PROBE.WEIGHT", "0.7"] if name.startswith("DePT") else []
    keys += ATTRIBUTES if name.endswith("_ATP") else []
    trainer = build(root, tmp_path, f"{name}_AnchorOPT", keys=keys)
    trainer.model.double()
    trainer.anchoropt_stage_one()
    trainer.set_model_mode("train")
    batch = next(iter(trainer.train_loader_x))
    batch = {"img": batch["img"][:2], "label": batch["label"][:2]}
    trainer.batch_idx, trainer.num_batches = 0, 2
    want = Slow(trainer, position)
    loss = want.loss(batch["img"], batch["label"])
    assert_close(trainer.forward_backward(batch)["loss"], loss.detach())
    used = {x: g for x, g in want.learned.items() if "anchoropt" not in x or position == "soft"}
    gradients = torch.autograd.grad(loss, list(used.values()), allow_unused=True)
    parameters = dict(trainer.model.named_parameters())
    for parameter, gradient in zip(used, gradients, strict=True):
        if gradient is not None:  # attributes 2 and 3 are not in the prompt
            assert_close(parameters[parameter].grad, gradient, parameter)
    trainer.set_model_mode("eval")
    with torch.no_grad():
        got = trainer.model_inference(batch["img"])
        after = Slow(trainer, position)
        assert_close(got, (after.l_n(batch["img"]) + after.l_a(batch["img"])) / 2)

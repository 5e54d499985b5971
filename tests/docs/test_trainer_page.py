"""The plain loop of docs/trainer.md runs, and its numbers are those of slow, plain computations."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch.nn import functional as F

import train
from anchoropt_plugin import tokenize
from tests.training.lookalikes import TextEncoder

PAGE = (Path(train.__file__).parent / "docs/trainer.md").read_text(encoding="utf-8")
MODEL, LOOP, OTHER = re.findall(
    r"```python\n(.*?)```", PAGE.partition("## Plain PyTorch")[2].partition("\n## ")[0], re.DOTALL
)


NAMES, NEW = ["red star", "blue circle", "ring"], ["green cross", "star"]


def test_the_plain_loop():
    torch.manual_seed(0)
    loader = [(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])) for _ in range(3)]

    names = {
        **{"__name__": "example", "class_names": NAMES, "loader": loader},
        "other_names": NEW,
        "descriptions": {name: [f"a photo of a {name}."] for name in NAMES},
    }
    example = MODEL.replace("ViT-B/16", "tiny") + f"other = Model(clip, {NEW})\n" + LOOP
    exec(compile(example, "docs/trainer.md", "exec"), names)
    clip, model, other = (names[name] for name in ("clip", "model", "other"))
    assert model.text_encoder.forward.in_use

    images = loader[0][0]
    embedded = clip.token_embedding(tokenize([f"X of {name}." for name in NAMES])).detach()
    embedded[:, 1] = names["anchors"].values
    texts = TextEncoder(clip)(embedded, tokenize([f"X of {name}." for name in NAMES]))
    cosines = F.cosine_similarity(clip.visual(images)[:, None], texts[None], dim=-1)
    anchor_logits = clip.logit_scale.exp() * cosines
    assert torch.allclose(names["anchor_logits"](images), anchor_logits, atol=1e-3)

    logits, mean = names["logits"], (names["logits"] + names["anchor_logits"](loader[2][0])) / 2
    kl = mean.softmax(-1) * (mean.log_softmax(-1) - logits.log_softmax(-1))
    loss = F.cross_entropy(logits, loader[2][1]) + kl.mean()
    assert torch.allclose(names["loss"], loss, atol=1e-5)

    learner = model.prompt_learner
    assert learner.ctx.grad.norm() > 0 and names["position"].logits.grad.norm() > 0
    exec(compile(OTHER, "docs/trainer.md", "exec"), names)
    trained = learner.state_dict()
    there = other.prompt_learner.state_dict()
    assert all(torch.equal(there[key], trained[key]) for key in trained if "token_" not in key)
    assert not other.training and other(images).shape == (4, 2)
    assert names["anchor_logits"](images).shape == (4, 2)

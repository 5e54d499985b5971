"""The examples of docs/other_clips.md run with small random models of both libraries."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import train
from anchoropt_plugin import restore
from tests.encoders.foreign_clips import new, open_clip, transformers

PAGE = (Path(train.__file__).parent / "docs/other_clips.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
NAMES = ["cat", "red fox", "a grand piano"]


@pytest.mark.parametrize("name", ["ViT, GELU", "transformers, GELU"])
def test_the_loop_trains_and_equals_the_plain_forward(name, monkeypatch):
    model = new(name)
    monkeypatch.setattr(open_clip, "create_model_and_transforms", lambda *_: (model, None, None))
    monkeypatch.setattr(transformers.CLIPModel, "from_pretrained", lambda _: model)
    torch.manual_seed(0)
    names = {
        "__name__": "example",
        "class_names": NAMES,
        "descriptions": {name: [f"a photo of a {name}."] for name in NAMES},
        "loader": [(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0]))] * 3,
    }
    imports, loop = EXAMPLES[0].split("clip, _, preprocess")
    loop = f"clip, _, preprocess{loop}" if name.startswith("ViT") else EXAMPLES[1]
    exec(compile(imports + loop, "docs/other_clips.md", "exec"), names)
    learner, encoder, losses = (names[key] for key in ("learner", "encoder", "anchors"))
    assert losses.losses[-1] < losses.losses[0]
    assert learner.ctx.grad.norm() > 0 and names["position"].logits.grad.norm() > 0
    with torch.no_grad():
        learner.eval()
        prompts, tokens = learner(), learner.tokenized_prompts
        fast = encoder(prompts, tokens)
        assert encoder.forward.in_use
        restore(encoder)
        plain = encoder(prompts, tokens)
    assert (fast - plain).norm() < 1e-5 * plain.norm()

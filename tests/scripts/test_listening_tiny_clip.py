"""scripts/listening_tiny_clip.py trains the text encoder and the projection of images alone."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from anchoropt_plugin import load_clip

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import listening_tiny_clip
import pretrain_tiny_clip


def test_the_image_encoder_below_its_projection_stays(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(listening_tiny_clip.RECIPE, "pool", 500)
    path = tmp_path / "listening.pt"
    pretrain_tiny_clip.save(listening_tiny_clip.train(seed=0, steps=2), path)
    before, after = load_clip("tiny"), load_clip(str(path))
    assert after.known_tokens == before.known_tokens
    same = {
        name
        for name, value in after.state_dict().items()
        if torch.equal(value, before.state_dict()[name])
    }
    image = {name for name in same if name.startswith("visual.")}
    assert image == {name for name in after.state_dict() if name.startswith("visual.")} - {
        "visual.proj"
    }
    assert not same & {"text_projection", "token_embedding.weight", "positional_embedding"}

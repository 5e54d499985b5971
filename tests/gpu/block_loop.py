"""What the host waits for while the text tower runs its blocks, forward and backward."""

from __future__ import annotations

import torch

from anchoropt_plugin.encoders.clip_models import load_clip, tokenize
from anchoropt_plugin.encoders.text_tower import TextTower, common_prefix
from benchmarks.pretend_gpu import Record


def waits_in_the_block_loop(record: Record) -> list[str]:
    """The waits of a second step: the first one packs the prompts."""
    tower = TextTower(load_clip("tiny").cuda())
    tokens = tokenize(["a photo of a red circle.", "a photo of a star."])
    eot, n_shared = tokens.argmax(-1).tolist(), common_prefix(tokens)
    prompts = tower.embed(tokens).requires_grad_()
    for _ in range(2):
        before = record.waits.copy()
        features = tower.encode(prompts, eot, n_shared)
        features.backward(torch.ones_like(features))
    return [*(record.waits - before)]

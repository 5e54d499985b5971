"""The anchor prompts ``[A] of {class}.``, encoded by the plain CLIP."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..encoders.class_names import as_words
from ..encoders.clip_models import tokenize
from ..encoders.text_tower import TextTower, common_prefix

CHUNK = 1_000
"""Classes encoded at once; with more, the backward pass computes activations again."""


class AnchorPrompts:
    """The prompts ``[A] of {class}.`` of C classes, with a place for anchor tokens.

    Args:
        tower: the text tower that encodes the prompts.
        class_names: C names; ``_`` is read as a blank.
        length: number K of anchor tokens.
    """

    def __init__(self, tower: TextTower, class_names: Sequence[str], length: int) -> None:
        self.tower = tower
        placeholder = " ".join(["X"] * length)
        names = [as_words(name) for name in class_names]
        tokens = tokenize([f"{placeholder} of {name}." for name in names])
        self.eot = tokens.argmax(-1).tolist()
        self.n_shared = common_prefix(tokens)
        self.frame = tower.embed(tokens[:, : max(self.eot) + 1])
        self.length = length

    def encode(self, anchors: Tensor) -> Tensor:
        """Return L2-normalised text features (C, e) in float32 for ``anchors`` (K, d)."""
        starts = range(0, len(self.eot), CHUNK)
        if len(starts) == 1:
            return self._encode_chunk(anchors, 0)
        parts = [
            # Without a graph, checkpoint only calls the function.
            checkpoint(
                self._encode_chunk, anchors, start, use_reentrant=False, preserve_rng_state=False
            )
            for start in starts
        ]
        return torch.cat(parts)

    def _encode_chunk(self, anchors: Tensor, start: int) -> Tensor:
        """Return the features of up to ``CHUNK`` classes, from class ``start`` on."""
        frame, eot = self.frame[start : start + CHUNK], self.eot[start : start + CHUNK]
        tokens = anchors.to(frame.dtype).expand(len(frame), -1, -1)
        prompts = torch.cat([frame[:, :1], tokens, frame[:, 1 + self.length :]], 1)
        features = self.tower.encode(prompts, eot, self.n_shared, rest_is_constant=True)
        return F.normalize(features.float(), dim=-1)

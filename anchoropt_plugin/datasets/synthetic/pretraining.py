"""Parts of the tiny CLIP's pre-training: text features, losses, unknown tokens."""

from __future__ import annotations

import torch
from clip.model import CLIP
from torch import Tensor, nn
from torch.nn import functional as F

from .scenes import Scenes
from .vocabulary import COLOURS, DIGITS, FILLS, SHAPES

UNKNOWN = -1
"""The number of a token without an embedding in the model."""


def with_unknown_tokens(
    generator: torch.Generator, tokens: Tensor, share: float, most: int
) -> Tensor:
    """Insert unknown tokens into some texts, after the start token.

    An untrained soft prompt is a few vectors without a meaning. A text tower that never saw such
    vectors ignores the words after them.

    Args:
        generator: the source of the chosen texts and of their numbers of unknown tokens.
        tokens: (n, 77) int64; the end token is the largest of each row, followed by padding.
        share: the share of changed texts, 0 to 1.
        most: the largest number of unknown tokens in a text with enough room.

    Returns:
        (n, 77) int64; inserted tokens are ``UNKNOWN``.
    """
    tokens = tokens.clone()
    chosen = torch.rand(len(tokens), generator=generator) < share
    for row in chosen.nonzero().flatten().tolist():
        count = int(torch.randint(1, most + 1, (1,), generator=generator))
        count = min(count, tokens.shape[1] - 1 - int(tokens[row].argmax()))
        tokens[row, 1 + count :] = tokens[row, 1 : tokens.shape[1] - count].clone()
        tokens[row, 1 : 1 + count] = UNKNOWN
    return tokens


def embed(model: CLIP, tokens: Tensor) -> Tensor:
    """Return (n, length, width) token embeddings; an unknown token is new noise in every call.

    All noise in a text has the same random scale, from half the scale of untrained embeddings to
    the scale of trained ones.
    """
    known = model.token_embedding(tokens.clamp_min(0))
    scale = torch.empty(len(tokens), 1, 1).uniform_(0.01, 0.06)
    return torch.where((tokens == UNKNOWN)[..., None], torch.randn_like(known) * scale, known)


def text_features(model: CLIP, tokens: Tensor) -> Tensor:
    """Return (n, embed_dim) features of (n, 77) tokens, in half the time of ``encode_text``.

    The text tower is causal, so tokens after the end token can be cut off: texts are sorted by
    length, and each quarter is cut to its longest text.
    """
    end = tokens.argmax(-1)
    order = end.argsort()
    full_mask = model.transformer.resblocks[0].attn_mask
    features = []
    for rows in order.chunk(4):
        length = int(end[rows].max()) + 1
        for block in model.transformer.resblocks:
            block.attn_mask = full_mask[:length, :length]
        x = embed(model, tokens[rows, :length]) + model.positional_embedding[:length]
        x = model.transformer(x.permute(1, 0, 2))
        x = model.ln_final(x[end[rows], torch.arange(len(rows))])
        features.append(x @ model.text_projection)
    for block in model.transformer.resblocks:
        block.attn_mask = full_mask
    return torch.cat(features)[order.argsort()]


def contrastive_loss(model: CLIP, image: Tensor, text: Tensor, kind: Tensor) -> Tensor:
    """Return CLIP's loss, a scalar, with all captions of the same kind as equal positives."""
    image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
    logits = model.logit_scale.exp() * image @ text.T
    same = (kind[:, None] == kind).float()
    same = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)) / 2


class AttributeHead(nn.Module):
    """Predict colour, fill and shape or digit from image features; dropped after training.

    The head speeds up the image tower's start: the contrastive loss alone stays flat for long.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.sizes = (len(COLOURS), len(FILLS), len(SHAPES), len(DIGITS))
        self.linear = nn.Linear(embed_dim, sum(self.sizes))

    def forward(self, image: Tensor, scenes: Scenes) -> Tensor:
        """Return the loss, a scalar, of (n, embed_dim) features of n scenes."""
        logits = self.linear(8 * F.normalize(image, dim=-1))
        colour, fill, shape, digit = logits.split(self.sizes, dim=1)
        shapes, digits = scenes.digit < 0, scenes.digit >= 0
        return (
            0.5 * F.cross_entropy(colour, scenes.colour)
            + F.cross_entropy(fill[shapes], scenes.fill[shapes])
            + F.cross_entropy(shape[shapes], scenes.shape[shapes])
            + F.cross_entropy(digit[digits], scenes.digit[digits])
        )

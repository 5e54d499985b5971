"""What a tiny CLIP computes while it is pre-trained: text features, losses, unknown tokens."""

from __future__ import annotations

import torch
from clip.model import CLIP
from torch import Tensor, nn
from torch.nn import functional as F

from .scenes import Scenes
from .vocabulary import COLOURS, DIGITS, FILLS, SHAPES

UNKNOWN = -1
"""Stands for a token that the model has no embedding for."""


def with_unknown_tokens(
    generator: torch.Generator, tokens: Tensor, share: float, most: int
) -> Tensor:
    """Put unknown tokens in front of some texts, behind their start token.

    A soft prompt is just that at the start: a few vectors that mean nothing. A text tower that
    never met such vectors loses sight of the words behind them.

    Args:
        generator: chooses texts and numbers.
        tokens: (n, 77) int64, the end token the largest of each row, then padding.
        share: how many of the texts are changed, 0 to 1.
        most: such a text gets 1 to ``most`` unknown tokens, or as many as it has room for.

    Returns:
        (n, 77) int64; the tokens put in are ``UNKNOWN``.
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
    """(n, length, width) token embeddings; an unknown token is noise, drawn afresh each time.

    In one text all noise has one scale, somewhere between half of what untrained embeddings have,
    and all that trained ones have.
    """
    known = model.token_embedding(tokens.clamp_min(0))
    scale = torch.empty(len(tokens), 1, 1).uniform_(0.01, 0.06)
    return torch.where((tokens == UNKNOWN)[..., None], torch.randn_like(known) * scale, known)


def text_features(model: CLIP, tokens: Tensor) -> Tensor:
    """(n, embed_dim) features of (n, 77) tokens, in half of the time.

    The text tower is causal, so what follows the end token can be cut off; sorted by length,
    four groups of texts are each cut to their own longest.
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
    """CLIP's loss, with all captions of the same thing as equal positives."""
    image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
    logits = model.logit_scale.exp() * image @ text.T
    same = (kind[:, None] == kind).float()
    same = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)) / 2


class AttributeHead(nn.Module):
    """Names colour, fill and shape or digit from image features; thrown away after training.

    It gets the image tower going: the contrastive loss alone stands still for a long time.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.sizes = (len(COLOURS), len(FILLS), len(SHAPES), len(DIGITS))
        self.linear = nn.Linear(embed_dim, sum(self.sizes))

    def forward(self, image: Tensor, scenes: Scenes) -> Tensor:
        """The loss, a scalar, of (n, embed_dim) features of n scenes."""
        logits = self.linear(8 * F.normalize(image, dim=-1))
        colour, fill, shape, digit = logits.split(self.sizes, dim=1)
        shapes, digits = scenes.digit < 0, scenes.digit >= 0
        return (
            0.5 * F.cross_entropy(colour, scenes.colour)
            + F.cross_entropy(fill[shapes], scenes.fill[shapes])
            + F.cross_entropy(shape[shapes], scenes.shape[shapes])
            + F.cross_entropy(digit[digits], scenes.digit[digits])
        )

"""The cost model: tokens and FLOPs of the text branch (plain, cut, fast) and the image tower."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from anchoropt_plugin.encoders.packing import ALIGNED


@dataclass(frozen=True)
class Sizes:
    """The arguments of ``clip.model.CLIP``, in the same order; the defaults are ViT-B/16's."""

    embed_dim: int = 512
    resolution: int = 224
    vision_layers: int = 12
    vision_width: int = 768
    patch: int = 16
    context: int = 77
    vocabulary: int = 49408
    width: int = 512
    heads: int = 8
    layers: int = 12


VIT_B16 = Sizes()


class Cost(NamedTuple):
    """The cost of a step by the model: tokens through the text tower, and FLOPs of the whole step.

    A multiplication with an addition counts as two FLOPs. With frozen weights, the backward pass of
    a linear map costs as much as its forward pass; the backward pass of attention costs twice as
    much as its forward pass.
    """

    text_tokens: int
    flops: float

    def plus(self, other: Cost) -> Cost:
        """Return the sum of both costs."""
        return Cost(self.text_tokens + other.text_tokens, self.flops + other.flops)

    def times(self, n: int) -> Cost:
        """Return ``n`` times the cost."""
        return Cost(self.text_tokens * n, self.flops * n)


class Work(NamedTuple):
    """The work of a block: its tokens, and its pairs of query and key."""

    tokens: int
    pairs: int


def plain_text(sizes: Sizes, n_prompts: int, backward: bool = True) -> Cost:
    """Return the cost of the plain text branch: all positions of all prompts."""
    work = Work(n_prompts * sizes.context, n_prompts * sizes.context**2)
    flops = _transformer(sizes.width, sizes.layers, work, work, backward)
    return Cost(work.tokens, flops + _projection(sizes, n_prompts, backward))


def cut_text(sizes: Sizes, eot: Sequence[int], backward: bool = True, sets: int = 1) -> Cost:
    """Return the cost of the plain text branch, cut after the longest prompt."""
    cut = replace(sizes, context=max(eot) + 1)
    return plain_text(cut, len(eot), backward).times(sets)


def fast_text(
    sizes: Sizes, eot: Sequence[int], n_prefix: int, backward: bool = True, sets: int = 1
) -> Cost:
    """Return the cost of the fast text branch: a prefix once per set, each prompt up to its EOT.

    Rows of padding make their number a multiple of ``ALIGNED``. In the last block, only the rows of
    EOT are computed beyond keys and values.
    """
    rows = n_prefix + sum(end + 1 - n_prefix for end in eot)
    padding = -rows % ALIGNED
    pairs = n_prefix**2 + sum((end + 1 - n_prefix) * (end + 1) for end in eot)
    work = Work(rows + padding, pairs + padding * (n_prefix + 1))
    last = Work(len(eot), sum(end + 1 for end in eot))
    flops = _transformer(sizes.width, sizes.layers, work, last, backward)
    return Cost(work.tokens, flops + _projection(sizes, len(eot), backward)).times(sets)


def image_tower(sizes: Sizes, batch: int) -> Cost:
    """Return the cost of the image tower's forward."""
    patches = (sizes.resolution // sizes.patch) ** 2
    width = sizes.vision_width
    work = Work(batch * (patches + 1), batch * (patches + 1) ** 2)
    flops = _transformer(width, sizes.vision_layers, work, work, backward=False)
    embedding = 2 * 3 * sizes.patch**2 * width * batch * patches
    return Cost(0, flops + embedding + 2 * width * sizes.embed_dim * batch)


def _transformer(width: int, layers: int, work: Work, last: Work, backward: bool) -> float:
    """Return the FLOPs of ``layers`` blocks that all do ``work`` but the last one."""
    projections, rest = 6 * width**2, 18 * width**2  # q, k, v; then output and MLP
    linear = layers * projections * work.tokens
    linear += rest * ((layers - 1) * work.tokens + last.tokens)
    attention = 4 * width * ((layers - 1) * work.pairs + last.pairs)
    return linear * (1 + backward) + attention * (1 + 2 * backward)


def _projection(sizes: Sizes, n_prompts: int, backward: bool) -> float:
    return 2 * sizes.width * sizes.embed_dim * n_prompts * (1 + backward)

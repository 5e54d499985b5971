"""Attention over packed prompts: every token sees the shared prefix and its own prompt."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .frozen_linear import frozen_linear
from .packing import Packing


def attend(attention: Any, x: Tensor, packing: Packing) -> Tensor:
    """CLIP's multi-head attention for all rows.

    Args:
        attention: an ``nn.MultiheadAttention``, whose weights are read.
        x: rows (N · R, d) as ``Packing`` describes them.
        packing: of the prompts.

    Returns:
        Rows (N · R, d).
    """
    d = x.shape[-1]
    rows = frozen_linear(x, attention.in_proj_weight, attention.in_proj_bias)
    tiles = _ToTiles.apply(rows, packing)
    query, key, value = _heads(tiles, packing, attention.num_heads, d)
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=packing.mask)
    mixed = _FromTiles.apply(mixed.transpose(1, 2).reshape(-1, d), packing)
    return frozen_linear(mixed, attention.out_proj.weight, attention.out_proj.bias)


def attend_eot(attention: Any, x: Tensor, packing: Packing) -> Tensor:
    """CLIP's multi-head attention for the rows of EOT alone, (N · n, d)."""
    d, n_heads = x.shape[-1], attention.num_heads
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    queries = frozen_linear(eot_rows(x, packing), weight[:d], bias[:d])
    query = queries[packing.eot_slots].unflatten(-1, (n_heads, d // n_heads)).transpose(1, 2)
    rows = frozen_linear(x, weight[d:], bias[d:])
    key, value = _heads(_ToTiles.apply(rows, packing), packing, n_heads, d)
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=packing.eot_mask)
    mixed = mixed.transpose(1, 2).reshape(-1, d)[packing.eot_order]
    return frozen_linear(mixed, attention.out_proj.weight, attention.out_proj.bias)


def eot_rows(x: Tensor, packing: Packing) -> Tensor:
    """Return the rows of EOT, (N · n, d), of ``x`` (N · R, d)."""
    return x.index_select(0, packing.eot)


def _heads(tiles: Tensor, packing: Packing, n_heads: int, d: int) -> tuple[Tensor, ...]:
    """(N · tiles · S, k · d) → k tensors (N · tiles, heads, S, width)."""
    n_tiles, size = packing.rows.shape
    apart = tiles.view(n_tiles, size, -1, n_heads, d // n_heads).permute(2, 0, 3, 1, 4)
    return apart.unbind()


class _ToTiles(torch.autograd.Function):
    """Rows (N · R, k) → slots (N · tiles · S, k).

    The backward pass needs no scatter: each suffix row has one slot, and the gradient of a prefix
    row is a sum over tiles. Gradients of padding are zero.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, packing: Packing) -> Tensor:
        ctx.packing = packing
        return rows.index_select(0, packing.rows.flatten())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        packing: Packing = ctx.packing
        rows = grad.index_select(0, packing.slots)
        if packing.n_prefix:
            of_set = grad.view(packing.n_sets, -1, packing.rows.shape[1], grad.shape[1])
            prefix = of_set[:, :, : packing.n_prefix].sum(1)
            rows.view(packing.n_sets, -1, grad.shape[1])[:, : packing.n_prefix] = prefix
        return rows, None


class _FromTiles(torch.autograd.Function):
    """Slots (N · tiles · S, d) → rows (N · R, d); the prefix is read in the first tile."""

    @staticmethod
    def forward(ctx: Any, slots: Tensor, packing: Packing) -> Tensor:
        ctx.packing = packing
        return slots.index_select(0, packing.slots)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        with_zero = torch.cat([grad, grad.new_zeros(1, grad.shape[1])])
        return with_zero.index_select(0, ctx.packing.row_or_zero), None

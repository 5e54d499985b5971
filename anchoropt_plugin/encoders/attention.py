"""Attention over packed prompts: shared prefixes, and suffix tokens that see their own prompt."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .frozen_linear import frozen_linear
from .packing import Packing

# torch 2.4 calls what it has deprecated itself.
warnings.filterwarnings(
    "ignore", r"`torch\.cpu\.amp\.autocast", FutureWarning, r"torch\.utils\.checkpoint"
)


def attend(attention: Any, x: Tensor, packing: Packing, n_sets: int, only_eot: bool) -> Tensor:
    """CLIP's multi-head attention over prompts that share their prefixes.

    Args:
        attention: an ``nn.MultiheadAttention``, whose weights are read.
        x: (n_sets · n_prefix + n_sets · n_packed, d): the prefixes of all sets, then the packed
            rows of all sets.
        packing: of the prompts of one set.
        n_sets: sets of prompts with the same tokens.
        only_eot: return the rows of EOT alone, (n_sets · n_prompts, d).

    Returns:
        Rows of width d, in the order of ``x``.
    """
    d, n_heads = x.shape[-1], attention.num_heads
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    # Apart from the queries, which for EOT alone are few, and in memory are kept longer.
    keys_values = frozen_linear(x, weight[d:], bias[d:])
    queries = eot_rows(x, packing, n_sets) if only_eot else x
    queries = frozen_linear(queries, weight[:d], bias[:d])
    n_prefix, n_tiles = packing.n_prefix, len(packing.mask)

    def heads(rows: Tensor, kinds: int, n: int, tokens: int) -> Tensor:
        """(n · tokens, kinds · d) → (kinds, n, heads, tokens, width)."""
        return rows.view(n, tokens, kinds, n_heads, d // n_heads).permute(2, 0, 3, 1, 4)

    cut = n_sets * n_prefix

    def look(queries: Tensor, mask: Tensor, keys_values: Tensor) -> Tensor:
        """Each tile's queries, (sets · tiles · tokens, d), mixed to (sets, tiles · tokens, d)."""
        n = n_sets * n_tiles
        shared = heads(keys_values[:cut], 2, n_sets, n_prefix)[:, :, None]
        shared = shared.expand(-1, -1, n_tiles, -1, -1, -1).flatten(1, 2)
        own = heads(keys_values[cut:], 2, n, packing.mask.shape[2])
        keys, values = torch.cat([shared, own], -2)
        query = heads(queries, 1, n, mask.shape[2])[0]
        mask = mask.repeat(n_sets, 1, 1, 1)
        mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
        return mixed.transpose(1, 2).reshape(n_sets, -1, d)

    def looked(queries: Tensor, mask: Tensor) -> Tensor:
        # Computed again in the backward pass: little work, and less to keep than it took.
        mixed: Tensor = checkpoint(
            look, queries, mask, keys_values, use_reentrant=False, preserve_rng_state=False
        )
        return mixed

    if only_eot:
        queries = queries.view(n_sets, -1, d)[:, packing.eot_slots].flatten(0, 2)
        mixed = looked(queries, packing.eot_mask)[:, packing.eot_order].flatten(0, 1)
    else:
        mixed = looked(queries[cut:], packing.mask).flatten(0, 1)
        if n_prefix:
            query = heads(queries[:cut], 1, n_sets, n_prefix)[0]
            key, value = heads(keys_values[:cut], 2, n_sets, n_prefix)
            ahead = F.scaled_dot_product_attention(query, key, value, is_causal=True)
            mixed = torch.cat([ahead.transpose(1, 2).reshape(cut, d), mixed])
    return frozen_linear(mixed, attention.out_proj.weight, attention.out_proj.bias)


def eot_rows(x: Tensor, packing: Packing, n_sets: int) -> Tensor:
    """Of ``x`` as ``attend`` takes it the rows of EOT, (n_sets · n_prompts, d), sets in turn."""
    rows = x[n_sets * packing.n_prefix :].unflatten(0, (n_sets, -1))
    return rows[:, packing.eot].flatten(0, 1)

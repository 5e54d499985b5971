"""Attention over packed prompts: shared prefixes, and suffix tokens that see their own prompt.

Prompts are taken in a few groups of similar length, so that a group is a handful of large products
however many lengths there are. The prefix is never copied for the prompts. Forward and backward are
written out: what autograd would record for so many small views costs more than the products.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

PADDING = 1.5
"""A group's longest suffix may be so many times its shortest."""


class Group(NamedTuple):
    """Prompts of similar length, next to each other in the pack, padded to the longest.

    Attributes:
        rows: (n, length) packed suffix rows of each prompt; where it has ended, its first again.
        real: (n, length), false where a prompt has ended.
        packed: (tokens,) the packed rows of all its tokens, and
        padded: (tokens,) their places among the n · length padded ones.
        last: (n,) the position of each prompt's EOT within ``length``.
        causal: (length, length), true where a token may look; it hides the padding too.
        until_last: (n, 1, length), the same for EOT alone.
    """

    rows: Tensor
    real: Tensor
    packed: Tensor
    padded: Tensor
    last: Tensor
    causal: Tensor
    until_last: Tensor


def group_prompts(lengths: Sequence[int], device: torch.device) -> tuple[Group, ...]:
    """Groups for suffixes of ``lengths``, which rise; they lie one after the other in the pack."""
    groups = []
    start = row = 0
    while start < len(lengths):
        stop = start
        while stop < len(lengths) and lengths[stop] <= max(PADDING * lengths[start], 1):
            stop += 1
        own = torch.tensor(lengths[start:stop], device=device)
        length = int(own[-1])
        first = row + torch.cat([own.new_zeros(1), own.cumsum(0)[:-1]])
        position = torch.arange(length, device=device)
        real = position < own[:, None]
        rows = torch.where(real, first[:, None] + position, first[:, None])
        last = own - 1
        groups.append(
            Group(
                rows,
                real,
                rows[real],
                real.flatten().nonzero().squeeze(1),
                last,
                position <= position[:, None],
                (position <= last[:, None])[:, None],
            )
        )
        start, row = stop, row + int(own.sum())
    return tuple(groups)


class _Shape(NamedTuple):
    """Sizes that all parts of a call share."""

    n_sets: int
    n_prefix: int
    n_suffix: int
    n_heads: int
    width: int


def attend(
    qkv: Tensor, groups: tuple[Group, ...], n_sets: int, n_prefix: int, only_eot: bool
) -> Tensor:
    """Attention of packed prompts.

    Args:
        qkv: (n_sets · n_prefix + n_sets · n_suffix, 3, heads, width): the prefixes of all sets,
            then their packed suffix tokens.
        groups: of the prompts of one set.
        n_sets: sets of prompts with the same tokens.
        n_prefix: tokens of a set's prefix.
        only_eot: return the rows of EOT alone, (n_sets · n_prompts, d), each set in pack order.

    Returns:
        (rows, d), in the order of ``qkv``.
    """
    out: Tensor = _Attend.apply(qkv, groups, n_sets, n_prefix, only_eot)
    return out


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        groups: tuple[Group, ...],
        n_sets: int,
        n_prefix: int,
        only_eot: bool,
    ) -> Tensor:
        n_heads, width = qkv.shape[2:]
        n_suffix = len(qkv) // n_sets - n_prefix
        shape = _Shape(n_sets, n_prefix, n_suffix, n_heads, width)
        prefix, suffix = _split(qkv, shape)
        prefix_q, prefix_k, prefix_v = prefix.permute(2, 0, 3, 1, 4).flatten(1, 2).unbind()
        saved: list[Tensor] = []
        parts = []
        out = None if only_eot else qkv.new_empty(len(qkv), n_heads * width)
        for group in groups:
            queries, keys, values = _gathered(suffix, group)
            if only_eot:
                queries = _last(queries, group)
            weights = _weights(queries, keys, prefix_k, _allowed(group, only_eot))
            to_prefix, to_own = weights.split([n_prefix, keys.shape[3]], -1)
            mixed = to_prefix.flatten(2, 3).flatten(0, 1) @ prefix_v
            mixed = mixed.view(-1, *queries.shape[3:])
            mixed = torch.baddbmm(mixed, to_own.flatten(0, 2), values.flatten(0, 2))
            mixed = mixed.view(queries.shape).permute(0, 2, 3, 1, 4).flatten(3)
            saved.append(weights)
            if out is None:
                parts.append(mixed.flatten(1, 2))
            else:
                _split(out, shape)[1].index_copy_(
                    1, group.packed, mixed.flatten(1, 2)[:, group.padded]
                )
        if out is None:
            out = torch.cat(parts, 1).flatten(0, 1)
        elif n_prefix:
            weights = _prefix_weights(prefix_q, prefix_k)
            saved.append(weights)
            mixed = (weights @ prefix_v).unflatten(0, (n_sets, n_heads))
            _split(out, shape)[0].copy_(mixed.transpose(1, 2).flatten(2))
        ctx.save_for_backward(qkv, *saved)
        ctx.groups, ctx.shape, ctx.only_eot = groups, shape, only_eot
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        qkv, *saved = ctx.saved_tensors
        shape, only_eot = ctx.shape, ctx.only_eot
        n_sets, n_prefix, _, n_heads, width = shape
        prefix, suffix = _split(qkv, shape)
        prefix_q, prefix_k, prefix_v = prefix.permute(2, 0, 3, 1, 4).flatten(1, 2).unbind()
        grad_qkv = torch.empty_like(qkv)
        grad_prefix, grad_suffix = _split(grad_qkv, shape)
        grad_prefix_q = torch.zeros_like(prefix_q)
        grad_prefix_k, grad_prefix_v = torch.zeros_like(prefix_k), torch.zeros_like(prefix_v)
        start = 0
        for group, weights in zip(ctx.groups, saved, strict=False):
            queries, keys, values = _gathered(suffix, group)
            if only_eot:
                queries = _last(queries, group)
                rows = grad.unflatten(0, (n_sets, -1))[:, start : start + len(group.rows), None]
                start += len(group.rows)
            else:
                rows = _split(grad, shape)[1][:, group.rows] * group.real[..., None]
            upstream = rows.unflatten(-1, (n_heads, width)).permute(0, 3, 1, 2, 4).contiguous()
            to_prefix, to_own = weights.split([n_prefix, keys.shape[3]], -1)
            to_prefix = to_prefix.flatten(2, 3).flatten(0, 1)
            to_own = to_own.flatten(0, 2)
            up_flat, up_own = upstream.flatten(2, 3).flatten(0, 1), upstream.flatten(0, 2)
            q_flat, q_own = queries.flatten(2, 3).flatten(0, 1), queries.flatten(0, 2)
            of_prefix = (up_flat @ prefix_v.mT).view(*queries.shape[:4], n_prefix)
            of_own = (up_own @ values.flatten(0, 2).mT).view(*queries.shape[:4], -1)
            scores = _softmax_backward(torch.cat([of_prefix, of_own], -1), weights, width)
            for_prefix, for_own = scores.split([n_prefix, keys.shape[3]], -1)
            for_prefix = for_prefix.flatten(2, 3).flatten(0, 1)
            for_own = for_own.flatten(0, 2)
            grad_prefix_k += for_prefix.mT @ q_flat
            grad_prefix_v += to_prefix.mT @ up_flat
            grad_q = (for_prefix @ prefix_k).view(q_own.shape)
            grad_q = torch.baddbmm(grad_q, for_own, keys.flatten(0, 2)).view(queries.shape)
            if only_eot:
                grad_q = _at_last(grad_q, group)
            grad_k = (for_own.mT @ q_own).view(keys.shape)
            grad_v = (to_own.mT @ up_own).view(keys.shape)
            grads = torch.stack([grad_q, grad_k, grad_v]).permute(1, 3, 4, 0, 2, 5).flatten(1, 2)
            grad_suffix.index_copy_(1, group.packed, grads[:, group.padded])
        if n_prefix and not only_eot:
            weights = saved[-1]
            rows = _split(grad, shape)[0].unflatten(-1, (n_heads, width))
            upstream = rows.transpose(1, 2).flatten(0, 1)
            scores = _softmax_backward(upstream @ prefix_v.mT, weights, width)
            grad_prefix_q = scores @ prefix_k
            grad_prefix_k += scores.mT @ prefix_q
            grad_prefix_v += weights.mT @ upstream
        grads = torch.stack([grad_prefix_q, grad_prefix_k, grad_prefix_v])
        grad_prefix.copy_(grads.unflatten(1, (n_sets, n_heads)).permute(1, 3, 0, 2, 4))
        return grad_qkv, None, None, None, None


def _split(x: Tensor, shape: _Shape) -> tuple[Tensor, Tensor]:
    """Views (sets, n_prefix, …) and (sets, n_suffix, …) of packed rows."""
    rows = shape.n_sets * shape.n_prefix
    sets = shape.n_sets
    return x[:rows].unflatten(0, (sets, shape.n_prefix)), x[rows:].unflatten(0, (sets, -1))


def _gathered(suffix: Tensor, group: Group) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of a group, each (sets, heads, n, length, width)."""
    own = suffix[:, group.rows].permute(3, 0, 4, 1, 2, 5).contiguous()
    return own[0], own[1], own[2]


def _last(queries: Tensor, group: Group) -> Tensor:
    """Those of EOT, (sets, heads, n, 1, width)."""
    at = group.last[None, None, :, None, None].expand(*queries.shape[:3], 1, queries.shape[-1])
    return queries.gather(3, at)


def _at_last(grads: Tensor, group: Group) -> Tensor:
    """The reverse of ``_last``: zero but at EOT, (sets, heads, n, length, width)."""
    out = grads.new_zeros(*grads.shape[:3], group.rows.shape[1], grads.shape[-1])
    at = group.last[None, None, :, None, None].expand_as(grads)
    return out.scatter_(3, at, grads)


def _allowed(group: Group, only_eot: bool) -> Tensor:
    return group.until_last if only_eot else group.causal


def _weights(queries: Tensor, keys: Tensor, prefix_k: Tensor, allowed: Tensor) -> Tensor:
    """Softmax over the prefix, then the own prompt: (sets, heads, n, tokens, n_prefix + length)."""
    to_prefix = queries.flatten(2, 3).flatten(0, 1) @ prefix_k.mT
    to_own = (queries.flatten(0, 2) @ keys.flatten(0, 2).mT).view(*queries.shape[:4], -1)
    to_own = to_own.masked_fill_(~allowed, float("-inf"))
    scores = torch.cat([to_prefix.view(*queries.shape[:4], -1), to_own], -1)
    return _softmax(scores, queries.shape[-1])


def _prefix_weights(queries: Tensor, keys: Tensor) -> Tensor:
    """Causal weights within the prefixes, (sets · heads, n_prefix, n_prefix)."""
    scores = queries @ keys.mT
    later = torch.ones_like(scores[0], dtype=torch.bool).triu(1)
    return _softmax(scores.masked_fill_(later, float("-inf")), queries.shape[-1])


def _softmax(scores: Tensor, width: int) -> Tensor:
    """Of scaled scores; in float32 at least."""
    precise = torch.promote_types(scores.dtype, torch.float32)
    return (scores * width**-0.5).softmax(-1, dtype=precise).to(scores.dtype)


def _softmax_backward(grad: Tensor, weights: Tensor, width: int) -> Tensor:
    """The gradient of scores before their scaling, given that of the weights."""
    precise = torch.promote_types(grad.dtype, torch.float32)
    grad, weights, dtype = grad.to(precise), weights.to(precise), weights.dtype
    inner = (grad * weights).sum(-1, keepdim=True)
    return ((grad - inner) * weights * width**-0.5).to(dtype)

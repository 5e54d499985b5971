"""How prompts of very different length are laid out as one matrix, with hardly any padding.

What stands behind the shared prefix of a prompt, its suffix, is packed together with others into
tiles of equal length. Linear maps see the rows of all tiles; attention looks at one tile at a time,
and a mask keeps the prompts in it apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

SPREAD = 24
"""Tiles are tried up to so many tokens longer than the longest suffix."""
LINEAR_COST = 384
"""The linear maps of a row cost as much as its attention to so many tokens (width 512, CPU)."""


class Packing(NamedTuple):
    """Where each row comes from, and what it may look at. It depends on lengths alone.

    Attributes:
        n_prefix: tokens of the shared prefix.
        prompt: (tiles · length,) the prompt of each packed row,
        position: (tiles · length,) and its position there. Padding repeats the first prompt's SOS.
        mask: (tiles, 1, length, n_prefix + length), true where a row looks: at the prefix, and at
            its own prompt up to itself.
        eot: (prompts,) the packed row of each prompt's EOT.
        eot_slots: (tiles, most) for each tile the prompts that end in it, filled up with any,
        eot_mask: (tiles, 1, most, n_prefix + length) what they look at,
        eot_order: (prompts,) and for each prompt its place among the slots.
    """

    n_prefix: int
    prompt: Tensor
    position: Tensor
    mask: Tensor
    eot: Tensor
    eot_slots: Tensor
    eot_mask: Tensor
    eot_order: Tensor


@lru_cache(maxsize=128)
@torch.inference_mode(False)  # what is made in inference mode must serve in training too
def pack(eot: tuple[int, ...], n_prefix: int, device: torch.device) -> Packing:
    """The packing of prompts with EOT at ``eot`` behind a prefix of ``n_prefix`` tokens.

    >>> packing = pack((3, 4, 3), 2, torch.device("cpu"))
    >>> packing.prompt.tolist(), packing.position.tolist()
    ([1, 1, 1, 0, 0, 2, 2], [2, 3, 4, 2, 3, 2, 3])
    >>> packing.eot.tolist()
    [4, 2, 6]
    """
    lengths = [end + 1 - n_prefix for end in eot]
    longest = max(lengths)
    tilings = (fill_tiles(lengths, size) for size in range(longest, longest + SPREAD + 1))
    size, tiles = min(tilings, key=lambda tiling: _cost(n_prefix, *tiling))
    n_rows = len(tiles) * size
    prompt, position = torch.zeros(2, n_rows, dtype=torch.long)
    # Padding is a prompt of its own that no row looks at.
    owner = torch.full((n_rows,), -1)
    eot_row = torch.empty(len(eot), dtype=torch.long)
    for number, tile in enumerate(tiles):
        row = number * size
        for index in tile:
            stop = row + lengths[index]
            prompt[row:stop] = owner[row:stop] = index
            position[row:stop] = torch.arange(n_prefix, n_prefix + lengths[index])
            eot_row[index] = stop - 1
            row = stop
    owner = owner.view(len(tiles), size)
    own = (owner[:, :, None] == owner[:, None]).tril()
    mask = torch.cat([own.new_ones(*own.shape[:2], n_prefix), own], -1)
    slots = pad_sequence([torch.tensor(tile) for tile in tiles], True, padding_value=0)
    in_tile = eot_row[slots] - size * torch.arange(len(tiles))[:, None]
    # A slot that is filled up looks at what its tile has at some row, and is not read.
    eot_mask = mask.gather(1, in_tile.clamp(0, size - 1)[..., None].expand(-1, -1, mask.shape[2]))
    order = torch.empty(len(eot), dtype=torch.long)
    for number, tile in enumerate(tiles):
        order[torch.tensor(tile)] = number * slots.shape[1] + torch.arange(len(tile))
    tensors = prompt, position, mask[:, None], eot_row, slots, eot_mask[:, None], order
    return Packing(n_prefix, *(tensor.to(device) for tensor in tensors))


def fill_tiles(lengths: Sequence[int], size: int) -> tuple[int, list[list[int]]]:
    """Put suffixes of ``lengths`` into tiles of ``size``, always the longest that has room.

    Returns:
        ``size``, and the indices in each tile.

    >>> fill_tiles([2, 3, 2], 5)
    (5, [[1, 0], [2]])
    """
    waiting: dict[int, list[int]] = {}
    for index in reversed(range(len(lengths))):
        waiting.setdefault(lengths[index], []).append(index)
    tiles: list[list[int]] = []
    while waiting:
        room, tile = size, []
        for length in sorted(waiting, reverse=True):
            fitting = min(room // length, len(waiting[length]))
            tile += [waiting[length].pop() for _ in range(fitting)]
            room -= fitting * length
            if not waiting[length]:
                del waiting[length]
        tiles.append(tile)
    return size, tiles


def _cost(n_prefix: int, size: int, tiles: list[list[int]]) -> int:
    return len(tiles) * size * (LINEAR_COST + n_prefix + size)

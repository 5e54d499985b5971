"""How prompts of very different lengths become one matrix, and tiles for attention.

The rows of a set of prompts are its shared prefix, then the suffixes of all prompts, one after
another, and up to seven rows of padding. Linear maps see these rows. Attention sees tiles: each
holds a copy of the prefix and some whole suffixes, and a mask keeps the prompts in it apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

ALIGNED = 8
"""Tiles have a multiple of this many slots, as attention kernels on GPUs want it. So do the rows of
a set: for some other numbers of rows, oneDNN's products are slower."""
TRIED = 4
"""Tile sizes that are tried, from the smallest possible on."""
ROW_COST = 64
"""Copying a row into a tile costs about as much as its attention to this many tokens."""


class Packing(NamedTuple):
    """Where each row comes from, where it is in the tiles, and which rows it attends to.

    N sets of n prompts have N · R rows: of each set, the prefix, all suffixes, and padding, which
    consists of suffixes of one row that nothing reads. A tile has S slots: the prefix, suffixes,
    padding.

    Attributes:
        n_prefix: tokens of the shared prefix.
        n_sets: sets N of prompts with the same tokens.
        prompt: (R − n_prefix,) the prompt of each suffix row; the first one for padding.
        position: (R − n_prefix,) the position of each suffix row in its prompt.
        rows: (N · tiles, S) the row in each slot; padding repeats the first row of its set.
        mask: (N · tiles, 1, S, S) added to attention scores: 0 or −∞. A row attends to the prefix
            and to its own prompt, up to itself.
        slots: (N · R,) the slot of each row, counted over all tiles.
        row_or_zero: (N · tiles · S,) the row whose output is read in each slot; N · R for others.
        eot: (N · n,) the row of each prompt's EOT.
        eot_slots: (N · tiles, most) for each tile the prompts that end in it; padding repeats any.
        eot_mask: (N · tiles, 1, most, S) the mask of the EOT rows.
        eot_order: (N · n,) the place of each prompt in ``eot_slots``, counted over all tiles.
    """

    n_prefix: int
    n_sets: int
    prompt: Tensor
    position: Tensor
    rows: Tensor
    mask: Tensor
    slots: Tensor
    row_or_zero: Tensor
    eot: Tensor
    eot_slots: Tensor
    eot_mask: Tensor
    eot_order: Tensor


@lru_cache(maxsize=128)
@torch.inference_mode(False)  # tensors made in inference mode could not serve in training
def pack(
    eot: tuple[int, ...],
    n_prefix: int,
    n_sets: int = 1,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Packing:
    """Return the packing of ``n_sets`` sets of prompts.

    Args:
        eot: position of EOT in each of the n prompts.
        n_prefix: tokens of the prefix that the prompts of a set share.
        n_sets: sets of prompts with the same tokens, for example one an image.
        dtype: of the attention scores.
        device: of the tensors.

    >>> packing = pack((3, 4, 2), 2)
    >>> packing.prompt.tolist(), packing.position.tolist()
    ([0, 0, 1, 1, 1, 2], [2, 3, 2, 3, 4, 2])
    >>> packing.eot.tolist()
    [3, 6, 7]
    """
    lengths = [end + 1 - n_prefix for end in eot]
    lengths += [1] * (-(n_prefix + sum(lengths)) % ALIGNED)
    size, tiles = _best_tiles(lengths, n_prefix)
    prompt = torch.repeat_interleave(torch.tensor(lengths))
    ends = torch.tensor(lengths).cumsum(0)
    position = n_prefix + torch.arange(len(prompt)) - (ends - torch.tensor(lengths))[prompt]
    prompt[prompt >= len(eot)] = 0
    n_rows = n_prefix + len(prompt)
    rows = torch.zeros(len(tiles), size, dtype=torch.long)
    rows[:, :n_prefix] = torch.arange(n_prefix)
    owner = torch.full_like(rows, -1)  # of padding
    owner[:, :n_prefix] = -2
    for tile, members in enumerate(tiles):
        slot = n_prefix
        for index in members:
            stop, last = slot + lengths[index], n_prefix + int(ends[index])
            rows[tile, slot:stop] = torch.arange(last - lengths[index], last)
            owner[tile, slot:stop] = index
            slot = stop
    # Padding attends to slot 0, as a softmax needs one finite score. Its output is never read.
    sees = (owner[:, :, None] == owner[:, None]) & (owner[:, :, None] != -1)
    sees |= (owner[:, None] == -2) & (owner[:, :, None] >= 0)
    sees = sees.tril()
    sees[..., 0] |= owner == -1
    first_tile = torch.arange(len(tiles))[:, None] == 0
    is_read = (owner >= 0) | ((owner == -2) & first_tile)
    slots = torch.empty(n_rows, dtype=torch.long)
    slots[rows[is_read]] = is_read.flatten().nonzero().flatten()
    eot_row = n_prefix + ends[: len(eot)] - 1
    ending = [torch.tensor([index for index in tile if index < len(eot)]).long() for tile in tiles]
    eot_slots = pad_sequence(ending, True)
    in_tile = slots[eot_row][eot_slots] - size * torch.arange(len(tiles))[:, None]
    eot_sees = sees.gather(1, in_tile.clamp(0, size - 1)[..., None].expand(-1, -1, size))
    eot_order = torch.empty(len(eot), dtype=torch.long)
    for tile, ended in enumerate(ending):
        eot_order[ended] = tile * eot_slots.shape[1] + torch.arange(len(ended))

    def of_all_sets(tensor: Tensor, stride: int) -> Tensor:
        """Repeat indices for each set, each time ``stride`` higher."""
        offsets = stride * torch.arange(n_sets).view(-1, *[1] * tensor.dim())
        return (tensor + offsets).flatten(0, 1)

    def added(sees: Tensor) -> Tensor:
        mask = torch.zeros(sees.shape, dtype=dtype).masked_fill_(~sees, float("-inf"))
        return mask[:, None].repeat(n_sets, 1, 1, 1)

    all_rows = of_all_sets(rows, n_rows)
    row_or_zero = torch.where(is_read.repeat(n_sets, 1), all_rows, n_sets * n_rows).flatten()
    tensors = (
        prompt,
        position,
        all_rows,
        added(sees),
        of_all_sets(slots, len(tiles) * size),
        row_or_zero,
        of_all_sets(eot_row, n_rows),
        of_all_sets(eot_slots, len(eot)),
        added(eot_sees),
        of_all_sets(eot_order, eot_slots.numel()),
    )
    return Packing(n_prefix, n_sets, *(tensor.to(device) for tensor in tensors))


def _best_tiles(lengths: Sequence[int], n_prefix: int) -> tuple[int, list[list[int]]]:
    """Return the tile size S with the least work, and the suffixes in each tile."""
    smallest = -(-(n_prefix + max(lengths)) // ALIGNED)
    sizes = [ALIGNED * (smallest + more) for more in range(TRIED)]
    tilings = [(size, fill_tiles(lengths, size - n_prefix)) for size in sizes]
    return min(tilings, key=lambda tiling: len(tiling[1]) * tiling[0] * (tiling[0] + ROW_COST))


def fill_tiles(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Put suffixes of ``lengths`` into tiles with ``room`` slots, always the longest that fits.

    Returns:
        The indices of the suffixes in each tile.

    >>> fill_tiles([2, 3, 2], 5)
    [[1, 0], [2]]
    """
    waiting: dict[int, list[int]] = {}
    for index in reversed(range(len(lengths))):
        waiting.setdefault(lengths[index], []).append(index)
    tiles: list[list[int]] = []
    while waiting:
        left, tile = room, []
        for length in sorted(waiting, reverse=True):
            fitting = min(left // length, len(waiting[length]))
            tile += [waiting[length].pop() for _ in range(fitting)]
            left -= fitting * length
            if not waiting[length]:
                del waiting[length]
        tiles.append(tile)
    return tiles

"""Samplers by name: the order of a data set's images in a loader."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import RandomSampler, Sampler, SequentialSampler
from yacs.config import CfgNode

from ...errors import UserError
from ..utils.registry import check_availability
from .datasets import Datum


class _Groups(Sampler[int]):
    """Batches of equal parts, each part from another group of images: a domain or a class.

    The global ``random`` draws in the order of Dassl's samplers: a seed gives the same batches.
    """

    def __init__(
        self, data_source: Sequence[Datum], attribute: str, batch_size: int, n_groups: int
    ) -> None:
        self.groups: dict[int, list[int]] = defaultdict(list)
        for index, item in enumerate(data_source):
            self.groups[getattr(item, attribute)].append(index)
        self.n_groups, found = n_groups or len(self.groups), len(self.groups)
        if not 0 < self.n_groups <= found or batch_size % self.n_groups:
            raise UserError(
                f"a batch of {batch_size} images cannot hold equal parts of {self.n_groups} "
                f"{attribute}s; the images have {found}: change BATCH_SIZE, N_DOMAIN or N_INS in "
                "DATALOADER"
            )
        self.size = batch_size // self.n_groups
        self._length = len(list(iter(self)))

    def __len__(self) -> int:
        return self._length


class RandomDomainSampler(_Groups):
    """Batches of ``n_domain`` random domains (0: all), with random images of each."""

    def __init__(self, data_source: Sequence[Datum], batch_size: int, n_domain: int) -> None:
        super().__init__(data_source, "domain", batch_size, max(n_domain, 0))

    def __iter__(self) -> Iterator[int]:
        left = {name: list(indices) for name, indices in self.groups.items()}
        order: list[int] = []
        while all(len(indices) >= self.size for indices in left.values()):
            for name in self._domains():
                drawn = random.sample(left[name], self.size)
                order += drawn
                left[name] = [index for index in left[name] if index not in drawn]
        return iter(order)

    def _domains(self) -> list[int]:
        """Return the domains of the next batch."""
        return random.sample(list(self.groups), self.n_groups)


class SeqDomainSampler(RandomDomainSampler):
    """Batches of all domains, in the order of their numbers, with random images of each."""

    def __init__(self, data_source: Sequence[Datum], batch_size: int) -> None:
        super().__init__(data_source, batch_size, 0)

    def _domains(self) -> list[int]:
        return sorted(self.groups)


class RandomClassSampler(_Groups):
    """Batches of random classes, with ``n_ins`` random images of each."""

    def __init__(self, data_source: Sequence[Datum], batch_size: int, n_ins: int) -> None:
        if n_ins < 1 or batch_size % n_ins:
            raise UserError(f"N_INS is {n_ins}: give a divisor of the BATCH_SIZE {batch_size}")
        super().__init__(data_source, "label", batch_size, batch_size // n_ins)

    def __iter__(self) -> Iterator[int]:
        parts: dict[int, list[Any]] = {}
        for name, group in self.groups.items():
            indices: Any = list(group)
            if len(indices) < self.size:
                indices = np.random.choice(indices, size=self.size, replace=True)
            random.shuffle(indices)
            starts = range(0, len(indices) - self.size + 1, self.size)
            parts[name] = [indices[start : start + self.size] for start in starts]
        left = list(self.groups)
        order: list[int] = []
        while len(left) >= self.n_groups:
            for name in random.sample(left, self.n_groups):
                order += map(int, parts[name].pop(0))
                if not parts[name]:
                    left.remove(name)
        return iter(order)


_SAMPLERS: dict[str, Any] = {
    "RandomSampler": lambda source, *_: RandomSampler(source),
    "SequentialSampler": lambda source, *_: SequentialSampler(source),
    "RandomDomainSampler": lambda source, size, n_domain, _: RandomDomainSampler(
        source, size, n_domain
    ),
    "SeqDomainSampler": lambda source, size, *_: SeqDomainSampler(source, size),
    "RandomClassSampler": lambda source, size, _, n_ins: RandomClassSampler(source, size, n_ins),
}


def build_sampler(
    sampler_type: str,
    cfg: CfgNode | None = None,
    data_source: Sequence[Datum] = (),
    batch_size: int = 32,
    n_domain: int = 0,
    n_ins: int = 16,
) -> Sampler[int]:
    """Return the sampler named ``sampler_type`` over ``data_source``.

    Args:
        sampler_type: its name.
        cfg: not used; Dassl has this argument.
        data_source: the images.
        batch_size: images per batch.
        n_domain: of RandomDomainSampler: domains per batch.
        n_ins: of RandomClassSampler: images per class in a batch.

    Raises:
        UserError: an unknown name, or numbers that do not fit.
    """
    check_availability(sampler_type, _SAMPLERS, "the sampler")
    sampler: Sampler[int] = _SAMPLERS[sampler_type](data_source, batch_size, n_domain, n_ins)
    return sampler

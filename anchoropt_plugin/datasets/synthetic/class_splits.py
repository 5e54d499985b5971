"""Named splits of the classes of ``shapes`` into base and new.

A split is an order of the 48 classes: the first 24 are the base classes. Where base and new share
no colour, a prompt that was trained on base has never seen the colours of new; the same holds for
shapes and fills. ``shuffled`` shares everything.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from .vocabulary import BENCHMARK, COLOURS, SHAPES

# The first set of shapes, in the order of the vocabulary, that has exactly half of the classes.
_BASE_SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "arrow")
# No set of fills has half of the classes. Striped and hollow have 21; the first three dotted
# classes join them.
_FILLS = ("striped", "hollow", "dotted", "checkered")
_SEED = 0


def _by(attribute: str, values: Sequence[str]) -> tuple[str, ...]:
    triples = sorted(BENCHMARK, key=lambda triple: values.index(getattr(triple, attribute)))
    return tuple(map(str, triples))


def _shuffled() -> tuple[str, ...]:
    names = [str(triple) for triple in BENCHMARK]
    random.Random(_SEED).shuffle(names)
    return tuple(names)


CLASS_SPLITS: dict[str, tuple[str, ...]] = {
    "colour": _by("colour", list(COLOURS)),
    "shape": _by("shape", sorted(SHAPES, key=lambda shape: shape not in _BASE_SHAPES)),
    "fill": _by("fill", _FILLS),
    "shuffled": _shuffled(),
}
"""For each name the class names in order; ``colour`` is the order of the labels on disk."""

"""Division of images into a split, with the same random draws as public code."""

from __future__ import annotations

import random
from collections.abc import Iterable

from ..errors import UserError
from .splits import Item, Split, by_label


def divide(items: Iterable[Item], rng: random.Random) -> Split:
    """Divide each class at random: 50 % for training, 20 % for validation, the rest for test.

    Raises:
        UserError: a class with too few images.
    """
    split = Split([], [], [])
    for group in by_label(items):
        n_train, n_val = round(len(group) * 0.5), round(len(group) * 0.2)
        if not (n_train and n_val and n_train + n_val < len(group)):
            raise UserError(
                f"the class {group[0].classname!r} has {len(group)} images, too few to divide "
                "them 50/20/30: unpack all of them, or get the split file"
            )
        rng.shuffle(group)
        split.train.extend(group[:n_train])
        split.val.extend(group[n_train : n_train + n_val])
        split.test.extend(group[n_train + n_val :])
    return split


def hold_out(items: Iterable[Item], test: list[Item], rng: random.Random) -> Split:
    """Divide each class at random: 20 % for validation, the rest for training.

    Raises:
        UserError: a class with too few images.
    """
    split = Split([], [], test)
    for group in by_label(items):
        n_val = round(len(group) * 0.2)
        if not n_val:
            raise UserError(
                f"the class {group[0].classname!r} has {len(group)} images for training, too "
                "few to hold out a fifth: unpack all of them, or get the split file"
            )
        rng.shuffle(group)
        split.val.extend(group[:n_val])
        split.train.extend(group[n_val:])
    return split

"""Contexts of single classes (CSC) fit no other classes, but many hosts load them for any."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

from ..config.record import CLASSES
from ..encoders.class_names import as_words
from ..errors import UserError
from ..files.readers import read_json


def check_contexts(trainer: Any, folder: str | Path, names: Sequence[str]) -> None:
    """Check that contexts of single classes, if the model has some, are given their classes.

    Args:
        trainer: whose model has the contexts.
        folder: of the training; without a ``classes.json`` nothing is checked.
        names: of the classes that the model is used with.

    Raises:
        UserError: other classes, or another order; the message has the order of the training.
    """
    path = Path(folder, CLASSES)
    if not path.is_file() or not has_contexts(trainer, len(names)):
        return
    trained = read_json(path)
    if [*map(_words, names)] != [*map(_words, trained)]:
        order = shorten(", ".join(trained), 300, placeholder=" …")
        raise UserError(
            f"{folder} has one context for each class of its training (CSC True): such contexts "
            "fit these classes alone, in the order of the training; leave the class names out "
            f"(predict: --classes), or give them in the order of {path}: {order}"
        )


def has_contexts(trainer: Any, n_classes: int) -> bool:
    """Whether the model of a trainer has contexts of single classes."""
    sections = (value for value in trainer.cfg.TRAINER.values() if isinstance(value, dict))
    if not any(section.get("CSC") for section in sections):
        return False
    models = (trainer._models[name] for name in trainer.get_model_names())
    parameters = itertools.chain.from_iterable(model.parameters() for model in models)
    # A host without such contexts may have been given the key CSC, too.
    return any(one.dim() == 3 and len(one) == n_classes for one in parameters)


def _words(name: str) -> list[str]:
    return as_words(name).lower().split()

"""A host trainer without a data set: its model needs only class names."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any


def without_data(
    trainer: type, class_names: Sequence[str], batches: Sequence[dict[str, Any]] = ()
) -> type:
    """Return a subclass of a Dassl trainer that builds no data set.

    Args:
        trainer: the trainer.
        class_names: C class names, in the order of their labels.
        batches: batches of the loaders, in training and at test; each with ``img`` (B, 3, H, W),
            ``label``, ``domain``, ``impath`` and ``index``.

    >>> from dassl.config import get_cfg_default
    >>> from dassl.engine import TrainerX
    >>> class Host(TrainerX):
    ...     def build_model(self):
    ...         print(self.dm.dataset.classnames, self.num_classes)
    >>> cfg = get_cfg_default()
    >>> trainer = without_data(Host, ["cat", "dog"])(cfg)  # doctest: +ELLIPSIS
    ['cat', 'dog'] 2...
    """

    def build_data_loader(self: Any) -> None:
        known = {
            "num_classes": len(class_names),
            "num_source_domains": 0,
            "lab2cname": dict(enumerate(class_names)),
        }
        parts: dict[str, Any] = {"train_x": [], "train_u": [], "val": [], "test": []}
        dataset = SimpleNamespace(classnames=list(class_names), **known, **parts)
        labelled = ("train_loader_x", "val_loader", "test_loader")
        loaders = {**dict.fromkeys(labelled, batches), "train_loader_u": None}
        self.dm = SimpleNamespace(dataset=dataset, **known, **loaders)
        for name, value in {**known, **loaders}.items():
            setattr(self, name, value)

    namespace = {"build_data_loader": build_data_loader, "__module__": trainer.__module__}
    return type(trainer.__name__, (trainer,), namespace)

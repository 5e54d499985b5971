"""``Datum``, one image, and ``DatasetBase``, a data set."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Any


class Datum:
    """One image: its path, label, domain and class name.

    >>> Datum(impath="cat/1.jpg", label=3, classname="cat").label
    3
    """

    # Few-shot files pickle the class under this name, so Dassl can read the files written here.
    __module__ = "dassl.data.datasets.base_dataset"

    def __init__(
        self, impath: str = "", label: int = 0, domain: int = 0, classname: str = ""
    ) -> None:
        # The pickles hold these attribute names too.
        self._impath = impath
        self._label = label
        self._domain = domain
        self._classname = classname

    @property
    def impath(self) -> str:
        """The path of the image."""
        return self._impath

    @property
    def label(self) -> int:
        """The class, from 0."""
        return self._label

    @property
    def domain(self) -> int:
        """The domain, from 0."""
        return self._domain

    @property
    def classname(self) -> str:
        """The class name."""
        return self._classname


class DatasetBase:
    """A data set: lists of :class:`Datum` for training, validation and test.

    Args:
        train_x: labelled training images; they define the classes.
        train_u: unlabelled training images.
        val: validation images.
        test: test images.
    """

    dataset_dir = ""
    domains: Sequence[str] = ()

    def __init__(
        self,
        train_x: Sequence[Datum],
        train_u: Sequence[Datum] | None = None,
        val: Sequence[Datum] | None = None,
        test: Sequence[Datum] | None = None,
    ) -> None:
        self._train_x = train_x
        self._train_u = train_u
        self._val = val
        self._test = test
        self._num_classes = self.get_num_classes(train_x)
        self._lab2cname, self._classnames = self.get_lab2cname(train_x)

    @property
    def train_x(self) -> Sequence[Datum]:
        """Labelled training images."""
        return self._train_x

    @property
    def train_u(self) -> Sequence[Datum] | None:
        """Unlabelled training images."""
        return self._train_u

    @property
    def val(self) -> Sequence[Datum] | None:
        """Validation images."""
        return self._val

    @property
    def test(self) -> Sequence[Datum] | None:
        """Test images."""
        return self._test

    @property
    def lab2cname(self) -> dict[int, str]:
        """A dict from labels to class names."""
        return self._lab2cname

    @property
    def classnames(self) -> list[str]:
        """The class names in order of their labels."""
        return self._classnames

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return self._num_classes

    @staticmethod
    def get_num_classes(data_source: Sequence[Datum]) -> int:
        """Return the highest label plus one."""
        return max(item.label for item in data_source) + 1

    @staticmethod
    def get_lab2cname(data_source: Sequence[Datum]) -> tuple[dict[int, str], list[str]]:
        """Return a dict from labels to class names, and the names in order of their labels."""
        names = {item.label: item.classname for item in data_source}
        return names, [names[label] for label in sorted(names)]

    @staticmethod
    def split_dataset_by_label(data_source: Sequence[Datum]) -> dict[int, list[Datum]]:
        """Return the images of each label; labels are in order of their first image."""
        by_label: dict[int, list[Datum]] = defaultdict(list)
        for item in data_source:
            by_label[item.label].append(item)
        return by_label

    def generate_fewshot_dataset(
        self, *data_sources: Sequence[Datum], num_shots: int = -1, repeat: bool = False
    ) -> Any:
        """Draw ``num_shots`` images of each class, with the global ``random``.

        Args:
            data_sources: lists of images.
            num_shots: images per class; below 1 means all.
            repeat: whether to repeat images of a class that has fewer.

        Returns:
            A list for each data source; for a single data source, the list itself.
        """
        if num_shots < 1:
            return data_sources[0] if len(data_sources) == 1 else data_sources
        print(f"Creating a {num_shots}-shot dataset")
        drawn = []
        for data_source in data_sources:
            shots: list[Datum] = []
            for items in self.split_dataset_by_label(data_source).values():
                if len(items) >= num_shots:
                    shots += random.sample(items, num_shots)
                else:
                    shots += random.choices(items, k=num_shots) if repeat else items
            drawn.append(shots)
        return drawn[0] if len(drawn) == 1 else drawn

"""The most likely classes of each image of a test, for ``predictions.csv``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...encoders.logits import are_probabilities
from ...errors import UserError
from ...files.predictions import TOP, different_names, write_predictions


class TopClasses:
    """Collect the most likely classes of each image, on the device of the logits.

    >>> top = TopClasses()
    >>> top.add(["a.jpg"], torch.tensor([[0.0, 0.0, 9.0]]), torch.tensor([1]))
    >>> [(image, truth, names) for image, truth, names, _ in top.rows({0: "x", 1: "y", 2: "z"})]
    [('a.jpg', 'y', ['z', 'x', 'y'])]
    """

    def __init__(self) -> None:
        self._images: list[str] = []
        self._batches: list[tuple[Tensor, ...]] = []
        self._are_probabilities: bool | None = None

    def add(self, images: Sequence[str], logits: Tensor, labels: Tensor) -> None:
        """Take a batch: paths, logits (B, C) and labels (B,)."""
        self._images += images
        if self._are_probabilities is None:  # of the first batch: the comparison waits for a GPU
            self._are_probabilities = bool(are_probabilities(logits))
        full = logits.float()
        likely = full if self._are_probabilities else full.softmax(dim=1)
        top = likely.topk(min(TOP, logits.shape[1]))
        # The evaluator's prediction: of equal probabilities topk may put another one first.
        self._batches.append((labels, logits.argmax(dim=1), top.indices, top.values))

    def check_finite(self) -> None:
        """Check the probabilities of all images.

        Raises:
            UserError: those of an image are not numbers, so neither is its prediction.
        """
        values = torch.cat([batch[3] for batch in self._batches]).cpu()
        broken = (~values.isfinite()).any(dim=1).nonzero().flatten().tolist()
        if broken:
            raise UserError(
                f"the logits of {len(broken)} of {len(values)} images are not finite, first those "
                f"of {self._images[broken[0]] or f'image {broken[0]}'}: check INPUT.PIXEL_STD and "
                "the weights, or set PREC to fp32"
            )

    def rows(self, names: Mapping[int, str]) -> Iterator[tuple[str, str, list[str], Sequence[Any]]]:
        """Yield for each image its path, its class, the likely classes and their probabilities."""

        def name(label: int) -> str:
            return names.get(label, f"label {label}")

        # Moved here at once, as each move from a GPU is a wait.
        columns = [torch.cat(parts).cpu() for parts in zip(*self._batches, strict=True)]
        true, first, top = (column.tolist() for column in columns[:3])
        for row in zip(self._images, true, first, top, columns[3].numpy(), strict=True):
            image, label, predicted, classes, probabilities = row
            others = [other for other in classes if other != predicted]
            likely = [predicted, *others][: len(classes)]
            yield image, name(label), [name(one) for one in likely], probabilities

    def write(self, folder: str, names: Mapping[int, str]) -> str:
        """Write ``predictions.csv`` into an output folder, and return the digest of the file.

        Args:
            folder: the output folder.
            names: the classes by label.
        """
        return write_predictions(folder, self.rows(different_names(names)))


def paths_of(batch: Any, n_images: int) -> list[str]:
    """Return the paths of a batch's images, absolute; "" for each if the loader gives none.

    >>> paths_of({"img": torch.zeros(1, 3, 8, 8)}, 1)
    ['']
    """
    paths = batch.get("impath") if isinstance(batch, Mapping) else None
    return [str(Path(path).absolute()) for path in paths] if paths else [""] * n_images

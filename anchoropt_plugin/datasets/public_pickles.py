"""Readers of the image lists that public code pickles: few-shot draws, and all of ImageNet."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import UserError
from ..files.checkpoints import PlainUnpickler
from .splits import Item


def read_public_pickle(path: Path, dataset_dir: Path, image_dir: Path) -> dict[str, list[Item]]:
    """Return the lists of a public pickle by name, without running code from the pickle.

    Args:
        path: a pickle of ``{"train": [Datum, ...], ...}``.
        dataset_dir, image_dir: the folders of the data set and of its images. The pickle's paths
            are those of the machine that wrote it; an image's relative path follows the names of
            these two folders.

    Raises:
        UserError: a file of another kind, without training images, or of another data set.
    """
    parts = load_fewshot_pickle(path)
    if not parts.get("train"):
        raise UserError(f"{path} has no training images; delete the file, a new one is made")
    marker = f"/{image_dir.relative_to(dataset_dir.parent).as_posix()}/"

    def relative(impath: str) -> str:
        _, found, name = impath.replace("\\", "/").rpartition(marker)
        if not found:
            raise UserError(
                f"{path} names {impath}, which is not in a folder {marker.strip('/')}; "
                "delete the file, a new one is made"
            )
        return name

    return {
        part: [Item(relative(item.impath), item.label, item.classname) for item in items]
        for part, items in parts.items()
    }


class FewShotItem(NamedTuple):
    """One image of a few-shot file: path as written, label, domain and class name."""

    impath: str
    label: int
    domain: int
    classname: str


class _Datum:
    """A class that takes the attributes of a pickled ``Datum``."""

    def __setstate__(self, state: Any) -> None:
        kinds = {"_impath": str, "_label": int, "_domain": int, "_classname": str}
        for name, kind in kinds.items():
            if type(state[name]) is not kind:
                raise pickle.UnpicklingError(f"{name} is a {type(state[name]).__name__}")
        self.item = FewShotItem(*(state[name] for name in kinds))


class _FewShotUnpickler(PlainUnpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) != ("dassl.data.datasets.base_dataset", "Datum"):
            raise pickle.UnpicklingError(f"the pickle asks for {module}.{name}")
        return _Datum


def load_fewshot_pickle(path: str | Path) -> dict[str, list[FewShotItem]]:
    """Return the lists of a public ``shot_{k}-seed_{s}.pkl``, without running code from it.

    Args:
        path: a pickle of ``{"train": [Datum, ...], "val": [Datum, ...]}``; ImageNet's has no
            ``val``.

    Raises:
        UserError: a file that cannot be read, or has other content.
    """
    try:
        with Path(path).open("rb") as file:
            lists = _FewShotUnpickler(file).load()
        return {str(name): [datum.item for datum in items] for name, items in lists.items()}
    except Exception as error:  # a broken pickle can raise almost anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{path} is not a few-shot file ({type(error).__name__}: {reason}); delete the file, "
            "the shots are drawn again"
        ) from error

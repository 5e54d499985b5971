"""The lists of pictures that public code pickles: few-shot draws, and ImageNet's own."""

from __future__ import annotations

from pathlib import Path

from anchoropt_plugin.checkpoints import load_fewshot_pickle
from anchoropt_plugin.errors import UserError

from .splits import Item


def read_public_pickle(path: Path, dataset_dir: Path, image_dir: Path) -> dict[str, list[Item]]:
    """Return the lists of a public pickle by their names, without running code from it.

    Args:
        path: A pickle of ``{"train": [Datum, ...], ...}``.
        dataset_dir, image_dir: Its paths are those of the machine it was written on; what
            follows the names of these two folders in them is the path of the picture.

    Raises:
        UserError: It is not such a file, has no training pictures, or those of another data set.
    """
    parts = load_fewshot_pickle(path)
    if not parts.get("train"):
        raise UserError(f"{path} holds no training pictures; delete it to have it made anew")
    marker = f"/{image_dir.relative_to(dataset_dir.parent).as_posix()}/"

    def relative(impath: str) -> str:
        _, found, name = impath.replace("\\", "/").rpartition(marker)
        if not found:
            raise UserError(
                f"{path} names {impath}, which is not in a folder {marker.strip('/')}; "
                "delete the file to have it made anew"
            )
        return name

    return {
        part: [Item(relative(item.impath), item.label, item.classname) for item in items]
        for part, items in parts.items()
    }

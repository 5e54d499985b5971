"""Files of AnchorOPT's released code: where its anchors lie, and its checkpoints of stage 2."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from ..errors import UserError
from ..files.checkpoint_folder import CHILD, POSITION_LOGITS, is_of_classes
from ..method.anchors import PUBLISHED_FILE, PUBLISHED_NAME

ANCHOR_FOLDERS = {
    "DescribableTextures": "DTD",
    **dict.fromkeys(("ImageNetV2", "ImageNetSketch", "ImageNetA", "ImageNetR"), "ImageNet"),
}
"""Folders in ``anchor_weights`` that have another name than the data set."""
LEARNER_FOLDER = "normal_prompt_learner"
"""Folder of the checkpoints of CoOp, CoCoOp and DePT."""


def anchors_file(path: str | Path, data_set: str) -> Path:
    """Return the file of anchors at ``path``.

    Args:
        path: the file; a folder with ``anchor_prompt_learner/model.pth.tar``, such as the output
            folder of a run; or the released ``anchor_weights``, which has such a folder for each
            data set.
        data_set: ``DATASET.NAME``.

    Raises:
        UserError: the folder has no anchors for this data set; the message names those it has.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        return path
    of_data_set = path / ANCHOR_FOLDERS.get(data_set, data_set)
    places = [folder / PUBLISHED_FILE for folder in (path, path / data_set, of_data_set)]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        there = sorted(file.parents[1].name for file in path.glob(f"*/{PUBLISHED_FILE}"))
        raise UserError(
            f"{path} has no anchors for {data_set}: expected {places[-1]}; the folder has anchors "
            f"for {', '.join(there) or 'no data set'}"
        )
    return found


def is_released(state: Iterable[str]) -> bool:
    """Return whether the names in a state dict are those of the released code's stage 2.

    >>> is_released(["ctx", "ctx_pos_params"]), is_released(["ctx", "anchoropt.logits"])
    (True, False)
    """
    return any(_last(name) == POSITION_LOGITS for name in state)


def renamed(state: Mapping[str, Tensor], own: Iterable[str]) -> dict[str, Tensor]:
    """Return the released code's prompt learner and anchors under the names of this package.

    The context, the host's further parameters, the position logits and, if the file has them, the
    anchors are kept. Tensors of the classes, and CLIP in MaPLe's files, are dropped.

    Args:
        state: of a checkpoint of stage 2, see :func:`is_released`.
        own: names in the state dict of the model that it is for.

    >>> sorted(renamed(
    ...     {"prompt_learner.ctx": 0, "prompt_learner.ctx_pos_params": 1, "logit_scale": 2,
    ...      "anchor_prompt_learner.anchor_ctx_1": 3},
    ...     ["prompt_learner.ctx", "prompt_learner.anchoropt.logits"],
    ... ).items())
    [('prompt_learner.anchoropt.anchors', 3), ('prompt_learner.anchoropt.logits', 1), \
('prompt_learner.ctx', 0)]
    """
    learner = next(name for name in own if name.endswith(f"{CHILD}.logits"))
    learner = learner.removesuffix(f"{CHILD}.logits")
    theirs = next(name for name in state if _last(name) == POSITION_LOGITS)
    theirs = theirs.removesuffix(POSITION_LOGITS)
    special = {POSITION_LOGITS: f"{CHILD}.logits", PUBLISHED_NAME: f"{CHILD}.anchors"}
    found = {}
    for name, value in state.items():
        if _last(name) in special:
            found[learner + special[_last(name)]] = value
        elif name.startswith(theirs) and _last(name) != "token_of" and not is_of_classes(name):
            found[learner + name.removeprefix(theirs)] = value
    return found


def _last(name: str) -> str:
    return name.rpartition(".")[2]

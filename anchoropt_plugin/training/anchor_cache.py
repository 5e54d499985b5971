"""A cache of learned anchors, shared by hosts, seeds and reruns of the same task."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from ..encoders.architecture import variant_of
from ..encoders.text_tower import TextTower
from ..errors import UserError
from ..method.anchor_learning import StageOne
from ..method.anchors import AnchorTokens
from ..version import VERSION

log = logging.getLogger("anchoropt_plugin")


def content_key(
    tower: TextTower,
    class_names: Sequence[str],
    descriptions: Sequence[Sequence[str]],
    settings: StageOne,
) -> str:
    """Return a key of all that learned anchors depend on: text weights, names, descriptions, …

    To the last bit they also depend on the versions of this package and torch, the kind of device
    and the number of threads. Without these in the key, the numbers of a run would depend on which
    earlier run learned the anchors.
    """
    digest = hashlib.sha256()
    clip = tower.clip
    parts = [clip.token_embedding, clip.transformer, clip.ln_final]
    weights = [tensor for part in parts for tensor in part.state_dict().values()]
    for tensor in [*weights, clip.positional_embedding, clip.text_projection]:
        digest.update(str((tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    device = clip.text_projection.device.type
    by = [VERSION, torch.__version__, device, torch.get_num_threads()]
    variant = variant_of(clip.transformer)
    if variant:  # else the key is that of earlier versions
        by.append(variant)
    text = [list(class_names), [list(d) for d in descriptions], asdict(settings), by]
    digest.update(json.dumps(text, ensure_ascii=True).encode())
    return digest.hexdigest()[:32]


def cache_folder(setting: str = "") -> Path:
    """Return the cache folder: the setting, $ANCHOROPT_CACHE, or the user's cache folder.

    Raises:
        UserError: the folder is in a home folder, and there is none.
    """
    usual = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "anchoropt_plugin", "anchors")
    chosen = setting or os.environ.get("ANCHOROPT_CACHE") or usual
    try:
        return Path(chosen).expanduser()
    except RuntimeError as error:
        raise UserError(f"{chosen}: {error}; set HOME or ANCHOROPT_CACHE") from error


def get(folder: Path, key: str, shape: tuple[int, ...]) -> AnchorTokens | None:
    """Return the cached anchors (K, d) of ``key``, or None; damaged ones are learned again."""
    path = folder / f"{key}.pth.tar"
    if not os.path.exists(path):  # noqa: PTH110  (Path.exists raises without permission)
        return None
    try:
        anchors = AnchorTokens.load(path)
        if anchors.values.shape != shape or anchors.key != key:
            raise UserError(f"{path} does not hold the anchors of its key")
    except UserError as error:
        log.warning("%s; learning the anchors again", error)
        return None
    return anchors


def put(anchors: AnchorTokens, folder: Path) -> None:
    """Cache anchors under their key; warn if the folder cannot be written."""
    try:
        anchors.save(folder / f"{anchors.key}.pth.tar")
    except OSError as error:
        log.warning("cannot cache the anchors in %s: %s", folder, error)

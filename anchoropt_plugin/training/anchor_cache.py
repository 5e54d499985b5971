"""Learned anchors are kept, and shared by hosts, seeds and reruns of the same task."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from ..encoders.text_tower import TextTower
from ..errors import UserError
from ..method.anchors import AnchorTokens, StageOne
from ..version import VERSION

log = logging.getLogger("anchoropt_plugin")


def content_key(
    tower: TextTower,
    class_names: Sequence[str],
    descriptions: Sequence[Sequence[str]],
    settings: StageOne,
) -> str:
    """A key of all that learned anchors depend on: text weights, names, descriptions, settings.

    To the last bit that includes this package, torch, the kind of device and the number of threads:
    else a run's numbers would depend on which run before it has learned the anchors.
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
    text = [list(class_names), [list(d) for d in descriptions], asdict(settings), by]
    digest.update(json.dumps(text, ensure_ascii=True).encode())
    return digest.hexdigest()[:32]


def cache_folder(setting: str = "") -> Path:
    """Where learned anchors are kept: the setting, $ANCHOROPT_CACHE, or the user's cache folder.

    Raises:
        UserError: it is in a home folder, and there is none.
    """
    chosen = setting or os.environ.get("ANCHOROPT_CACHE", "")
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        if chosen:
            return Path(chosen).expanduser()
        return Path(base).expanduser() / "anchoropt_plugin" / "anchors"
    except RuntimeError as error:
        raise UserError(f"{chosen or base}: {error}: set HOME, or ANCHOROPT_CACHE") from error


def get(folder: Path, key: str, shape: tuple[int, ...]) -> AnchorTokens | None:
    """The anchors (K, d) kept under ``key``, or None; a damaged file is learned again."""
    path = folder / f"{key}.pth.tar"
    if not os.path.exists(path):  # noqa: PTH110  (that of a Path raises where it may not look)
        return None
    try:
        anchors = AnchorTokens.load(path)
        if anchors.values.shape != shape or anchors.key != key:
            raise UserError(f"{path} does not hold what its name says")
    except UserError as error:
        log.warning("%s; learning the anchors again", error)
        return None
    return anchors


def put(anchors: AnchorTokens, folder: Path) -> None:
    """Keep anchors under their key; where the folder cannot be written, say so and go on."""
    try:
        anchors.save(folder / f"{anchors.key}.pth.tar")
    except OSError as error:
        log.warning("cannot keep the anchors in %s (%s): they are learned anew", folder, error)

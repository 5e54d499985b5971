"""The CLIP that a configuration names, and the image preparation that it needs."""

from __future__ import annotations

from typing import Any

from ..encoders.architecture import ImagePreparation
from ..encoders.clip_models import CLIP, load_clip
from ..encoders.weight_files import BY_NAME
from ..errors import UserError

CLOSE = 1e-4
"""Numbers of a mean or std that differ by less are the same, rounded."""


def load_backbone(cfg: Any) -> CLIP:
    """Return the plain CLIP of ``MODEL.BACKBONE``, as ``load_clip`` does.

    Raises:
        UserError: see ``load_clip``.
    """
    node = cfg.MODEL.BACKBONE
    # A run of an earlier version has no key CONFIG: its weights were read as OpenAI's.
    return load_clip(node.NAME, config=node.get("CONFIG", BY_NAME))


def check_images(cfg: Any, clip: CLIP) -> None:
    """Check that ``cfg.INPUT`` prepares images as the weights of ``clip`` need it.

    Weights that do not tell how they need it are taken for OpenAI's, which may be trained further:
    they only get a note.

    Raises:
        UserError: the size, the mean, the std or the interpolation is another one.
    """
    name, given, side = cfg.MODEL.BACKBONE.NAME, cfg.INPUT, clip.visual.input_resolution
    if tuple(given.SIZE) != (side, side):
        raise UserError(
            f"INPUT.SIZE is {tuple(given.SIZE)}, but {name} takes images of {side} x {side}: set "
            f"INPUT.SIZE ({side},{side})"
        )
    known = getattr(clip, "preparation", None)
    wanted, normalises = known or ImagePreparation(), "normalize" in given.TRANSFORMS
    if not (known or normalises):  # the transforms tell it
        return
    pairs = {
        "PIXEL_MEAN": (given.PIXEL_MEAN if normalises else [0.0] * 3, wanted.mean),
        "PIXEL_STD": (given.PIXEL_STD if normalises else [1.0] * 3, wanted.std),
    }
    changes = [
        f"INPUT.{key} [{','.join(map(str, there))}]"
        for key, (here, there) in pairs.items()
        if any(abs(x - y) > CLOSE for x, y in zip(here, there, strict=True))
    ]
    if changes and not normalises:
        raise UserError(f"{name} takes normalised images: add normalize to INPUT.TRANSFORMS")
    if wanted.interpolation != given.INTERPOLATION:
        changes.append(f"INPUT.INTERPOLATION {wanted.interpolation}")
    if changes and known:
        raise UserError(
            f"the configuration prepares images otherwise than {name} needs it: set "
            f"{' '.join(changes)}"
        )
    if changes:
        print(
            "Note: OpenAI's CLIP was trained on images prepared otherwise; for its weights set "
            f"{' '.join(changes)}"
        )
    if wanted.squashed:
        print(
            f"Note: {name} was trained on images resized to a square; here the short edge is "
            "resized and the centre cropped"
        )

"""Exported class weights: the file that classifies images without this package.

Both formats hold the tensors ``weights`` and ``logit_scale``, and texts about them: a
``.safetensors`` file in its metadata, an ``.npz`` file as further arrays. Lists are json. Reading
runs no code from the file.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors import torch as safetensors
from torch import Tensor

from ..errors import UserError
from .atomic import atomic_write
from .checkpoints import check_archive

FORMAT = "anchoropt_plugin class weights 1"
SUFFIXES = (".safetensors", ".npz")


@dataclass(frozen=True)
class ImageInput:
    """How an image becomes what the image tower gets: resized, cropped at its centre, normalised.

    Attributes:
        size: height and width; the short edge is resized to the larger of both.
        interpolation: of the resize, "bicubic" or another name of torchvision.
        mean: of each channel, subtracted from pixels in 0 … 1.
        std: of each channel; the difference is divided by it.
    """

    size: list[int]
    interpolation: str
    mean: list[float]
    std: list[float]

    def texts(self) -> dict[str, str]:
        """Return the texts of a file: lists as json."""
        return {
            "image_size": json.dumps(self.size),
            "interpolation": self.interpolation,
            "mean": json.dumps(self.mean),
            "std": json.dumps(self.std),
        }


@dataclass(frozen=True)
class ClassWeights:
    """What classifies images: logits = ``logit_scale`` · features · ``weights``ᵀ.

    The features are L2-normalised features (B, e) of the plain CLIP's image tower.

    Attributes:
        weights: (C, e) float32. The rows have length 1; where a test averages the logits of prompt
            and anchors, a row is the mean of two such rows, which gives the mean of the logits.
        logit_scale: the factor of the cosines, CLIP's ``logit_scale.exp()``.
        classes: C class names.
        backbone: name, file or folder of the CLIP.
        config: what describes the CLIP, if its file does not: "openai", or a json file.
        image_tower: digest of the weights of the CLIP's image tower.
        images: what the image tower gets.
    """

    weights: Tensor
    logit_scale: float
    classes: list[str]
    backbone: str
    config: str
    image_tower: str
    images: ImageInput

    def texts(self) -> dict[str, str]:
        """Return the texts of a file: names as they are, lists as json."""
        return {
            "format": FORMAT,
            "classes": json.dumps(self.classes),
            "backbone": self.backbone,
            "backbone_config": self.config,
            "image_tower": self.image_tower,
            **self.images.texts(),
            "digest": self.digest(),
        }

    def digest(self) -> str:
        """Return a digest of all entries except for those that say where the CLIP is."""
        numbers = self.weights.numpy().tobytes() + np.float32(self.logit_scale).tobytes()
        texts = [json.dumps(self.classes), self.image_tower, *self.images.texts().values()]
        return hashlib.sha256(numbers + json.dumps(texts).encode()).hexdigest()[:32]


def write_class_weights(given: ClassWeights, path: Path) -> None:
    """Write a ``.safetensors`` or ``.npz`` file, by the suffix of ``path``, whole or not at all."""
    scale = torch.tensor(given.logit_scale)
    tensors = {"weights": given.weights.contiguous(), "logit_scale": scale}
    with atomic_write(path) as file:
        if path.suffix == ".npz":
            arrays: dict[str, Any] = {key: value.numpy() for key, value in tensors.items()}
            arrays |= {key: np.array(text) for key, text in given.texts().items()}
            np.savez(file, **arrays)
        else:
            file.write(safetensors.save(tensors, metadata=given.texts()))


def read_class_weights(path: Path) -> ClassWeights:
    """Read what ``write_class_weights`` wrote.

    Raises:
        UserError: a missing or damaged file, a file of another kind, or one that was edited.

    >>> import tempfile
    >>> given = ClassWeights(
    ...     *(torch.eye(2), 100.0, ["cat", "dog"], "tiny", "", "digest of its image tower"),
    ...     ImageInput([32, 32], "bicubic", [0.5] * 3, [0.2] * 3),
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_class_weights(given, Path(folder, "weights.npz"))
    ...     read_class_weights(Path(folder, "weights.npz")).classes
    ['cat', 'dog']
    """
    read = _read_npz if path.suffix == ".npz" else _read_safetensors
    try:
        with path.open("rb") as file:
            return _checked(*read(path, file))
    except OSError as error:
        raise UserError(f"cannot open {path}: {error.strerror}") from error
    except Exception as error:  # a damaged file fails in a dozen ways: zip, header, json, sizes, …
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{path} holds no class weights ({reason}): give a file that the command export wrote"
        ) from error


def _read_npz(path: Path, file: IO[bytes]) -> tuple[Callable[[str], Tensor], dict[str, str]]:
    check_archive(path)
    entries = dict(np.load(file, allow_pickle=False))
    texts = {key: str(value) for key, value in entries.items() if value.dtype.kind == "U"}
    return lambda name: torch.from_numpy(entries[name]), texts


def _read_safetensors(
    path: Path, file: IO[bytes]
) -> tuple[Callable[[str], Tensor], dict[str, str]]:
    content = file.read()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return safetensors.load(content).__getitem__, header.get("__metadata__", {})


def _checked(tensor: Callable[[str], Tensor], texts: dict[str, str]) -> ClassWeights:
    if texts.get("format") != FORMAT:
        raise ValueError(f"its format is {texts.get('format')!r}, not {FORMAT!r}")
    weights, scale = tensor("weights"), tensor("logit_scale")
    classes = _list(texts, "classes", str)
    if weights.dtype != torch.float32 or weights.dim() != 2 or len(weights) != len(classes):
        raise ValueError(
            f"its weights are {weights.dtype} {tuple(weights.shape)} for {len(classes)} classes"
        )
    if not (weights.isfinite().all() and scale.numel() == 1 and 0 < float(scale) < math.inf):
        raise ValueError("its weights are not finite, or its logit scale is not a number above 0")
    images = ImageInput(
        _list(texts, "image_size", int, 2),
        texts["interpolation"],
        _list(texts, "mean", float, 3),
        _list(texts, "std", float, 3),
    )
    if not all(map(math.isfinite, images.mean)) or not all(0 < x < math.inf for x in images.std):
        raise ValueError(f"its mean is {images.mean}, its std {images.std}")
    # Files of earlier versions do not have the entry: their CLIPs are OpenAI's.
    clip = texts["backbone"], texts.get("backbone_config", "openai"), texts["image_tower"]
    found = ClassWeights(weights, float(scale), classes, *clip, images)
    if texts.get("digest", found.digest()) != found.digest():  # earlier versions wrote none
        raise ValueError("it was edited after its export, by its digest")
    return found


def _list(texts: dict[str, str], key: str, kind: type, length: int | None = None) -> list[Any]:
    values = json.loads(texts[key])
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        raise ValueError(f"its {key} is {texts[key][:100]}")
    if length is not None and len(values) != length:
        raise ValueError(f"its {key} has {len(values)} values, not {length}")
    return values

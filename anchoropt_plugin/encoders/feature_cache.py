"""Cache features of frozen encoders: an image or prompt seen before is not encoded again.

Images are found by their content, so nothing is needed from the host or its data loader. If
transforms are deterministic (tests, validation, training without augmentation or with a bounded
number of views), every epoch after the first finds its features. If every image is new, as with
random crops, the cache soon gives up.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .frozen_linear import frozen_products

LIMIT = 200_000
"""Features cached at most: 400 MB of 512 numbers in float32."""
PATIENCE = 20_000
"""After this many images without a repeated one, caching ends."""
PART = 5 << 20
"""Bytes of images that the CPU encodes at once: 8 of 224 x 224 pixels in float32. The memory of
larger activations is taken from the system anew each time."""
KEYED = 1 << 26
"""Bytes of images whose keys are computed at once."""

_SHIFT = 1 << 63
_WORD = torch.int64.itemsize

CHANGING = nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd
"""Modules whose features of the same image change from call to call in training mode."""


def state_of(module: nn.Module) -> tuple[Any, ...]:
    """Return a state that changes when weights are loaded, trained, moved or converted."""
    parameters = list(module.parameters())
    # The version of a tensor counts its in-place changes.
    versions = sum(tensor._version for tensor in (*parameters, *module.buffers()))
    return versions, *((p.dtype, p.device, p.data_ptr()) for p in parameters)


class LastFeatures:
    """The features of the last inputs: an evaluation encodes its prompts once."""

    def __init__(self) -> None:
        self._inputs: list[Tensor] = []
        self._state: Any = None
        self._features: Tensor | None = None

    def get(self, inputs: list[Tensor], state: Any) -> Tensor | None:
        """Return a copy of the features of equal ``inputs`` and ``state``, or None."""
        if self._features is None or state != self._state or len(inputs) != len(self._inputs):
            return None
        pairs = list(zip(inputs, self._inputs, strict=True))
        if any(a.shape != b.shape or a.device != b.device for a, b in pairs):
            return None
        # One flag for all, as each read from a GPU is a wait.
        device = self._features.device
        flags = [(a == b).all().to(device, non_blocking=True) for a, b in pairs]
        # A copy: a host may change features in place, and needs a plain tensor to do so.
        return self._features.clone() if torch.stack(flags).all() else None

    def put(self, inputs: list[Tensor], state: Any, features: Tensor) -> None:
        """Store ``features`` and drop the earlier ones."""
        self._inputs, self._state = [tensor.clone() for tensor in inputs], state
        self._features = features.clone()

    def __getstate__(self) -> dict[str, Any]:
        # A copy of a model starts with an empty cache.
        return {"_inputs": [], "_state": None, "_features": None}


class CachedFeatures:
    """Replaces the ``forward`` of one image encoder, images (B, 3, R, R) → features (B, e).

    The encoder's own forward encodes new images: on the CPU a few at a time, with
    ``frozen_products``. Nothing is cached if the encoder has trained parameters, dropout, batch
    norm or hooks, returns anything but features (B, e), or gets more arguments than images. The
    features of an image are assumed not to depend on the other images in its batch. A change of
    weights or precision empties the cache.

    Attributes:
        hits: number of images that were found.
        misses: number of images that were not found.
    """

    def __init__(self, encoder: nn.Module) -> None:
        self.encoder = encoder
        self.hits = self.misses = 0
        self._fits = True
        self._has_graph: bool | None = None
        self._features: dict[int, Tensor] = {}
        self._signature: Any = None
        self._modules = list(encoder.modules())
        self._weights: Tensor | None = None

    def __call__(self, images: Tensor, *prompts: Any, **named: Any) -> Any:
        features = None
        if not named and all(map(_is_nothing, prompts)) and self._is_frozen(images, prompts):
            features = self._found(images, prompts)
        return self._forward(images, *prompts, **named) if features is None else features

    def _is_frozen(self, images: Tensor, prompts: tuple[Any, ...]) -> bool:
        """Whether the features of an image are always the same, as far as one can see."""
        if not self._fits:
            return False
        if images.requires_grad or any(p.requires_grad for p in self.encoder.parameters()):
            return False
        if any(module.training and isinstance(module, CHANGING) for module in self._modules):
            return False
        if any(m._forward_hooks or m._forward_pre_hooks for m in self._modules[1:]):
            return False
        if torch.is_grad_enabled() and self._has_graph is None and len(images):
            # The encoder may read a trained parameter of another module.
            features = self._forward(images[:1], *prompts)
            self._has_graph = isinstance(features, Tensor) and features.requires_grad
        return not self._has_graph

    def _found(self, images: Tensor, prompts: tuple[Any, ...]) -> Tensor | None:
        """Return features of ``images``, new ones encoded; None if the encoder has none."""
        autocast = torch.is_autocast_enabled(images.device.type)
        signature = (*state_of(self.encoder), images.dtype, images.shape[1:], autocast)
        gives_up = not self.hits and self.misses > PATIENCE
        if gives_up or signature != self._signature:
            self._features.clear()
            self._signature = signature
        if gives_up:
            return self._encode(images, prompts)
        keys = self._keys(images)
        new = [row for row, key in enumerate(keys) if key not in self._features]
        found = {key: self._features[key] for key in keys if key in self._features}
        if new:
            features = self._encode(images if len(new) == len(keys) else images[new], prompts)
            if features is None:
                return None
            found.update(zip((keys[row] for row in new), features, strict=True))
        self.hits += len(keys) - len(new)
        self.misses += len(new)
        if len(self._features) < LIMIT:
            self._features.update(found)
        return torch.stack([found[key] for key in keys])

    def _encode(self, images: Tensor, prompts: tuple[Any, ...]) -> Tensor | None:
        """Return the encoder's features without a graph; None if it returns anything else."""
        parts: Sequence[Tensor] = [images]
        if images.device.type == "cpu" and len(images):
            parts = images.split(max(1, PART // images[0].nbytes))
        # Cached features must serve in training too, even if a test in inference mode is first.
        with torch.inference_mode(False), torch.no_grad(), frozen_products(images.device):
            features = [self._forward(part, *prompts) for part in parts]
            self._fits = all(map(_is_features, features, parts))
            return torch.cat(features) if self._fits else None

    def _forward(self, *args: Any, **named: Any) -> Any:
        return type(self.encoder).forward(self.encoder, *args, **named)

    def _keys(self, images: Tensor) -> list[int]:
        """Return a number for each image: its words times random odd weights, mod 2^64."""
        n_bytes = images[0].nbytes
        keys = []
        for part in images.split(max(1, KEYED // n_bytes)):
            words = F.pad(part.flatten(1).contiguous().view(torch.uint8), (0, -n_bytes % _WORD))
            words = words.view(torch.int64)
            if self._weights is None or len(self._weights) != words.shape[1]:
                generator = torch.Generator().manual_seed(0)
                weights = torch.randint(-_SHIFT, _SHIFT - 1, words.shape[1:], generator=generator)
                self._weights = weights | 1
            self._weights = self._weights.to(words.device)
            keys.append((words * self._weights).sum(1))
        return torch.cat(keys).tolist()

    def __getstate__(self) -> dict[str, Any]:
        # A copy of a model starts with an empty cache.
        return {**self.__dict__, "_features": {}, "_weights": None}


def _is_features(output: Any, images: Tensor) -> bool:
    return isinstance(output, Tensor) and output.dim() == 2 and len(output) == len(images)


def _is_nothing(argument: Any) -> bool:
    """Whether a further argument is empty: None, or prompts of zero tokens."""
    return argument is None or (isinstance(argument, (Tensor, Sized)) and not len(argument))


def cache_image_features(encoder: nn.Module) -> CachedFeatures:
    """Cache the features of a frozen image encoder from now on; ``restore`` ends this.

    >>> encoder = nn.Linear(4, 2).requires_grad_(False)
    >>> cached = cache_image_features(encoder)
    >>> images = torch.randn(3, 4)
    >>> torch.equal(encoder(images), encoder(images)), cached.hits, cached.misses
    (True, 3, 3)
    """
    forward = encoder.__dict__.get("forward")
    if not isinstance(forward, CachedFeatures):
        forward = CachedFeatures(encoder)
        # On the instance: type, submodules and state dict of the encoder stay as they are.
        encoder.forward = forward
    return forward

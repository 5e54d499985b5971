"""Keep features of frozen encoders: what was encoded before is not encoded again.

A picture is known by its content, so this needs nothing from the host or its data loader: where
transforms are deterministic (tests, validation at each epoch, training without augmentation or
with a bounded number of views), every epoch after the first finds its features. Where every
picture is new, as under random crops, it soon gives up.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import Any

import torch
from torch import Tensor, nn

from .frozen_linear import frozen_products

LIMIT = 200_000
"""Features kept at most: 400 MB of 512 numbers in float32."""
PATIENCE = 20_000
"""So many pictures without one that was seen before, and nothing more is kept."""
PART = 5 << 20
"""Bytes of pictures that the CPU encodes at once: 8 of 224 x 224 pixels in float32. Larger
activations are taken from the system anew each time."""

_SHIFT = 1 << 63

_CHANGING = nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd
"""Modules that give the same picture other features each time while they train."""


def state_of(module: nn.Module) -> tuple[Any, ...]:
    """Changes when the weights of ``module`` do: loading or training them, moving, converting."""
    parameters = list(module.parameters())
    # A tensor's version counts its in-place changes.
    versions = sum(parameter._version for parameter in parameters)
    return versions, *((p.dtype, p.device, p.data_ptr()) for p in parameters[:1])


class LastFeatures:
    """The features of the last inputs: an evaluation encodes its prompts once, not every batch."""

    def __init__(self) -> None:
        self._inputs: list[Tensor] = []
        self._state: Any = None
        self._features: Tensor | None = None

    def get(self, inputs: list[Tensor], state: Any) -> Tensor | None:
        """A copy of the features kept for equal ``inputs`` and ``state``, or None."""
        if self._features is None or state != self._state or len(inputs) != len(self._inputs):
            return None
        pairs = zip(inputs, self._inputs, strict=True)
        # A host may change what it gets in place; outside inference mode a copy is a plain tensor.
        return self._features.clone() if all(torch.equal(a, b) for a, b in pairs) else None

    def put(self, inputs: list[Tensor], state: Any, features: Tensor) -> None:
        """Keep ``features``, and drop those from before."""
        self._inputs, self._state = [tensor.clone() for tensor in inputs], state
        self._features = features.clone()

    def __getstate__(self) -> dict[str, Any]:
        # A copy of a model starts with nothing kept.
        return {"_inputs": [], "_state": None, "_features": None}


class CachedFeatures:
    """Stands in for the ``forward`` of one image encoder, pictures (B, 3, R, R) → features (B, e).

    The encoder's own forward is called for pictures not seen before: on the CPU a few at a time,
    with ``frozen_products``. It is simply called where something in it is trained, draws, uses
    batch statistics or is looked at by a hook, where it gives anything but features (B, e), or
    where more than pictures comes along. That a picture's features are its own, whatever else is in
    its batch, is taken for granted. A change of weights or precision drops all that was kept.

    Attributes:
        hits: pictures that were found.
        misses: pictures that were not.
    """

    def __init__(self, encoder: nn.Module) -> None:
        self.encoder = encoder
        self.hits = self.misses = 0
        self._fits = True
        self._features: dict[int, Tensor] = {}
        self._signature: Any = None
        self._modules = list(encoder.modules())
        self._weights: Tensor | None = None

    def __call__(self, images: Tensor, *prompts: Any, **named: Any) -> Any:
        features = None
        if not named and all(map(_is_nothing, prompts)) and self._is_frozen(images):
            features = self._found(images, prompts)
        return self._forward(images, *prompts, **named) if features is None else features

    def _is_frozen(self, images: Tensor) -> bool:
        """Whether the features of a picture are always the same, as far as can be seen."""
        if not self._fits:
            return False
        if images.requires_grad or any(p.requires_grad for p in self.encoder.parameters()):
            return False
        if any(module.training and isinstance(module, _CHANGING) for module in self._modules):
            return False
        return not any(m._forward_hooks or m._forward_pre_hooks for m in self._modules[1:])

    def _found(self, images: Tensor, prompts: tuple[Any, ...]) -> Tensor | None:
        """Features of ``images``, of which those not found are encoded; None where none are had."""
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
        """The encoder's features of ``images``, without a graph; None where it gives others."""
        parts: Sequence[Tensor] = [images]
        if images.device.type == "cpu" and len(images):
            parts = images.split(max(1, PART // images[0].nbytes))
        # What is kept must serve in training too, even if a test in inference mode is first.
        with torch.inference_mode(False), torch.no_grad(), frozen_products(images.device):
            features = [self._forward(part, *prompts) for part in parts]
            self._fits = all(map(_is_features, features, parts))
            return torch.cat(features) if self._fits else None

    def _forward(self, *args: Any, **named: Any) -> Any:
        """The encoder's own."""
        return type(self.encoder).forward(self.encoder, *args, **named)

    def _keys(self, images: Tensor) -> list[int]:
        """A number for each picture's content: its bits times random odd weights, modulo 2^64."""
        bits = (
            images.contiguous()
            .view(
                {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.int8}[
                    images.element_size()
                ]
            )
            .flatten(1)
        )
        if self._weights is None or self._weights.shape[0] != bits.shape[1]:
            generator = torch.Generator().manual_seed(0)
            weights = torch.randint(-_SHIFT, _SHIFT - 1, (bits.shape[1],), generator=generator)
            self._weights = weights | 1
        weights = self._weights = self._weights.to(bits.device)
        # One picture at a time: the products are twice as wide as the picture.
        return torch.stack([(row.long() * weights).sum() for row in bits]).tolist()

    def __getstate__(self) -> dict[str, Any]:
        # A copy of a model starts with nothing kept.
        return {**self.__dict__, "_features": {}, "_weights": None}


def _is_features(output: Any, images: Tensor) -> bool:
    return isinstance(output, Tensor) and output.dim() == 2 and len(output) == len(images)


def _is_nothing(argument: Any) -> bool:
    """Whether a further argument of an image encoder is left out: None, or prompts of no tokens."""
    return argument is None or (isinstance(argument, (Tensor, Sized)) and not len(argument))


def cache_image_features(encoder: nn.Module) -> CachedFeatures:
    """Keep the features of a frozen image encoder from now on; ``restore`` ends it.

    >>> encoder = nn.Linear(4, 2).requires_grad_(False)
    >>> kept = cache_image_features(encoder)
    >>> pictures = torch.randn(3, 4)
    >>> torch.equal(encoder(pictures), encoder(pictures)), kept.hits, kept.misses
    (True, 3, 3)
    """
    forward = encoder.__dict__.get("forward")
    if not isinstance(forward, CachedFeatures):
        forward = CachedFeatures(encoder)
        # On the instance: type, submodules and state dict of the encoder stay as they are.
        encoder.forward = forward
    return forward

"""The CLIP that a host loaded, kept plain: a host may train, replace or extend parts of its own.

``PlainCLIP`` keeps it; ``PlainImages`` gives its image features.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from .equivalence import CALL_ERRORS, HALF_TOLERANCE
from .feature_cache import CHANGING
from .image_calls import images_among
from .image_features import is_transformer, plain_features, unprompted

FEW = 2
"""Images whose features are compared."""
SAME = 1e-2
"""Largest relative error at which a host's features in float32 are those of the plain CLIP."""


class PlainCLIP:
    """A copy of a host's CLIP whose weights stay those that were loaded.

    The copy shares all weights that nobody changes, so it costs no memory and moves with the host's
    CLIP. ``keep`` gives the copy weights of its own where a host trains them, ``unchanged`` where a
    checkpoint brings other values.

    Args:
        clip: the host's CLIP, at best as it was loaded. Parts that a host puts into its CLIP later
            are not in the copy.

    Attributes:
        clip: the copy, in evaluation mode.

    >>> host = nn.Linear(2, 2)
    >>> plain = PlainCLIP(host)
    >>> plain.keep([host.bias])
    >>> plain.clip.weight is host.weight, plain.clip.bias is host.bias
    (True, False)
    """

    def __init__(self, clip: nn.Module) -> None:
        shared = {id(parameter): parameter for parameter in clip.parameters()}
        self.clip: Any = copy.deepcopy(clip, dict(shared)).eval()
        self._shared = shared
        self._kept: dict[int, nn.Parameter] = {}
        self._versions = {key: parameter._version for key, parameter in shared.items()}

    def keep(self, trained: Iterable[nn.Parameter]) -> None:
        """Give the copy its own values of parameters that are trained from now on.

        Raises:
            UserError: the values of a parameter have changed since ``note``.
        """
        for parameter in trained:
            if id(parameter) in self._shared:
                if parameter._version != self._versions[id(parameter)]:
                    raise UserError(
                        "the host trains weights of CLIP that it did not train when its model was "
                        "built, and they have changed since: give them to the optimiser, with "
                        "requires_grad, in build_model"
                    )
                self._put(parameter, parameter.detach().clone())

    def note(self) -> None:
        """Take the present values of shared weights for those that were loaded."""
        self._versions = {key: parameter._version for key, parameter in self._shared.items()}

    @contextlib.contextmanager
    def unchanged(self, models: Iterable[nn.Module]) -> Iterator[None]:
        """Keep the values of all weights in ``models`` that change inside the context manager.

        A checkpoint may hold CLIP's weights, and a host may have trained them.
        """
        parameters = {id(p): p for model in models for p in model.parameters()}
        before = [
            (parameter, parameter.detach().clone())
            for key, parameter in parameters.items()
            if key in self._shared
        ]
        try:
            yield
        finally:
            for parameter, values in before:
                values = values.to(parameter)
                if not torch.equal(values, parameter):
                    self._put(parameter, values)
            self.note()

    def shares(self, module: nn.Module) -> bool:
        """Whether no weight of ``module`` is one that the copy has values of its own for."""
        return not any(id(parameter) in self._kept for parameter in module.parameters())

    def _put(self, parameter: nn.Parameter, values: Tensor) -> None:
        """Replace a shared parameter by a frozen one with ``values``, wherever the copy has it."""
        own = nn.Parameter(values, requires_grad=False)
        for module in self.clip.modules():
            for name, other in module.named_parameters(recurse=False):
                if other is parameter:
                    module._parameters[name] = own
        self._kept[id(parameter)] = self._shared.pop(id(parameter))


class PlainImages:
    """Image features of the plain CLIP for the calls of a host's image encoder.

    The encoder's own features are plain if it is frozen and gets no prompts; the first call is
    compared. If they are not plain, the plain CLIP encodes the images once more.

    Args:
        plain: the plain CLIP.
    """

    def __init__(self, plain: PlainCLIP) -> None:
        self.plain = plain
        self._are_plain: bool | None = None
        self._device: torch.device | None = None

    def __call__(
        self, encoder: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Any
    ) -> Tensor | Callable[[], Tensor]:
        """Return plain features (N, e) of a call, or a function that computes them."""
        images = images_among(args, named)
        assert images is not None

        def own() -> Tensor:
            return unprompted(encoder, args, output)

        if self._changes(encoder) or any(map(_holds_tensors, named.values())):
            return partial(self.encode, images)
        if len(args) > 1 and is_transformer(encoder):
            return own
        if len(args) == 1 and isinstance(output, Tensor) and output.requires_grad:
            self._are_plain = False  # something outside the encoder is trained to change them
        if self._are_plain is None:
            self._are_plain = self._agrees(own, images)
        if not self._are_plain:
            return partial(self.encode, images)
        return own if len(args) > 1 else own()

    def _changes(self, encoder: nn.Module) -> bool:
        """Whether the features of ``encoder`` are, or may become, others than CLIP's."""
        if any(module.training and isinstance(module, CHANGING) for module in encoder.modules()):
            return True
        has_trained = any(parameter.requires_grad for parameter in encoder.parameters())
        return has_trained or not self.plain.shares(encoder)

    def encode(self, images: Tensor) -> Tensor:
        """Return the features (N, e) of images (N, 3, R, R).

        Raises:
            UserError: CLIP's image encoder has another form than OpenAI's.
        """
        visual = self.plain.clip.visual
        try:
            if images.device != self._device:  # parts that the host replaced stay where they were
                self._device = visual.to(images.device).conv1.weight.device
            images = images.to(visual.conv1.weight.dtype)
            features = plain_features(visual, images) if is_transformer(visual) else visual(images)
        except CALL_ERRORS as error:
            raise UserError(
                f"{type(visual).__name__} does not encode images without the host ({error}), so "
                "AnchorOPT has no features of the plain CLIP: give the learner a PromptHook "
                "(register_hook) whose plain_features returns them"
            ) from error
        return features

    def _agrees(self, own: Callable[[], Tensor], images: Tensor) -> bool:
        """Whether a host's own features (N, e) are those of the plain CLIP, for a few images."""
        try:
            plain = self.encode(images[:FEW]).float()
        except UserError:
            return True  # nothing of CLIP is trained: the host's encoder is the only one there is
        try:
            features = own()[:FEW].detach()
        except UserError:
            return False
        half = features.dtype != torch.float32 or torch.is_autocast_enabled(images.device.type)
        limit = (HALF_TOLERANCE if half else SAME) * plain.norm()
        return features.shape == plain.shape and bool((features.float() - plain).norm() <= limit)


def _holds_tensors(argument: Any) -> bool:
    """Whether a keyword argument holds prompts; other ones are options, or images."""
    parts = argument if isinstance(argument, (list, tuple)) else [argument]
    return any(isinstance(part, Tensor) and part.dim() != 4 for part in parts)

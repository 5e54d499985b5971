"""A trainer's model as a test uses it, with everything that no image changes as a constant.

A host trainer computes its prompts, the position matrix and the text features in Python code that
no tracer can follow, and mostly gets the same numbers for all images. ``TestedModel`` puts these
numbers in their places, so that ``torch.export`` and ``torch.jit.trace`` see the rest alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from ..encoders.accelerate import is_text_encoder
from ..encoders.fast_forward import FastForward
from ..encoders.feature_cache import CachedFeatures
from ..encoders.logits import probabilities
from ..errors import UserError
from ..method.position import AnchorPositionModule
from .traced import TOLERANCE

Forward = Callable[..., Any]

HALF_TOLERANCE = 0.1
"""The same as ``TOLERANCE``, for a model in half precision."""


class TestedModel(nn.Module):
    """Images (B, 3, R, R) → probabilities (B, C) in float32, as in a test of ``trainer``.

    Args:
        trainer: with its trained weights loaded; later changes of them are not followed.

    Attributes:
        text_features: (C, e), not normalised, of the text encoder that was called last, or, if none
            was called, those that the trainer keeps under this name; else, and if they depend on
            the images, None.

    Raises:
        UserError: SAMPLE_AT_EVAL, which gives other probabilities at each test.
    """

    def __init__(self, trainer: Any) -> None:
        super().__init__()
        self.host: nn.Module = trainer.model
        self._trainer = trainer
        positions = [m for m in self.host.modules() if isinstance(m, AnchorPositionModule)]
        if any(position.sample_at_eval for position in positions):
            raise UserError(
                "TRAINER.ANCHOROPT.SAMPLE_AT_EVAL draws a position matrix at each test, so no file "
                "can hold the model: train with SAMPLE_AT_EVAL False"
            )
        with torch.no_grad():
            self._fixed = [(position, position.draw().clone()) for position in positions]
            self._anchor_features = _anchor_features(trainer)
            self._forwards, self.text_features = self._text_branch()

    def forward(self, images: Tensor) -> Tensor:
        with self._constants():
            return self.trainers(images)

    def trainers(self, images: Tensor) -> Tensor:
        """Return the probabilities (B, C) of the trainer itself."""
        return probabilities(self._trainer.model_inference(images))

    @property
    def tolerance(self) -> float:
        """The largest difference from the trainer's probabilities that rounding explains."""
        is_half = any(parameter.dtype == torch.float16 for parameter in self.host.parameters())
        return HALF_TOLERANCE if is_half else TOLERANCE

    def random_images(self, number: int) -> Tensor:
        """Return random images (number, 3, R, R), always the same, on the trainer's device."""
        generator = torch.Generator().manual_seed(0)
        size = self._trainer.cfg.INPUT.SIZE
        return torch.randn(number, 3, *size, generator=generator).to(self._trainer.device)

    @contextlib.contextmanager
    def _constants(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:

            def put(owner: Any, name: str, value: Any) -> None:
                stack.enter_context(mock.patch.object(owner, name, value))

            for position, matrix in self._fixed:
                put(position, "draw", partial(_value, matrix))
                put(position, "matrix", partial(_value, matrix))
            if self._anchor_features is not None:
                run, rule = self._trainer.anchoropt, self._trainer.anchoropt_rule
                put(run, "class_features", partial(_value, self._anchor_features))
                put(rule, "features", partial(_first_features, run))
            for module, forward in self._forwards:
                put(module, "forward", forward)
            for module in self.host.modules():
                if isinstance(module.__dict__.get("forward"), CachedFeatures):
                    put(module, "forward", partial(type(module).forward, module))
            yield

    def _text_branch(self) -> tuple[list[tuple[nn.Module, Forward]], Tensor | None]:
        """Return the forwards of the text encoders, and the last one's features."""
        encoders = [module for module in self.host.modules() if is_text_encoder(module)]
        first, second = (
            _calls(self._trainer, encoders, images) for images in self.random_images(4).split(2)
        )
        forwards: list[tuple[nn.Module, Forward]] = []
        features = None if first else getattr(self._trainer, "text_features", None)
        for module, (args, output) in first.items():
            own = module.__dict__.get("forward")
            if isinstance(output, Tensor) and torch.equal(output, second[module][1]):
                forwards.append((module, partial(_value, output)))
                features = output
            elif isinstance(own, FastForward):
                # EOT is the same for all images; it is looked up here, as no tracer could.
                tokens = own.prompts.read(args)[0][1]
                forwards.append((module, partial(_own_forward, own, tokens)))
        return forwards, features


def _value(value: Tensor, *args: Any, **named: Any) -> Tensor:
    return value


def _first_features(run: Any, *_: Any) -> Tensor:
    """Return the plain features of all images, without a comparison of images."""
    features: Tensor = run.features.value
    return features


def _own_forward(fast: FastForward, tokens: Tensor, prompts: Tensor, _: Any, *deep: Any) -> Tensor:
    return fast.host_forward(prompts, tokens, *deep)


def _anchor_features(trainer: Any) -> Tensor | None:
    run = getattr(trainer, "anchoropt", None)
    return None if run is None else run.class_features()


def _calls(trainer: Any, encoders: list[nn.Module], images: Tensor) -> dict[nn.Module, Any]:
    """Return the last arguments and output of each encoder in a test of ``images``."""
    calls: dict[nn.Module, Any] = {}

    def record(encoder: nn.Module, args: Any, output: Any) -> None:
        calls[encoder] = args, output

    with contextlib.ExitStack() as stack:
        for encoder in encoders:
            stack.callback(encoder.register_forward_hook(record).remove)
        trainer.model_inference(images)
    return calls

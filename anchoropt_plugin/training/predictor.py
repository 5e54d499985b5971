"""``Predictor``: the classes of images, with the probabilities of a test."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ..encoders.logits import probabilities
from ..errors import UserError
from ..files.class_weights import SUFFIXES, write_class_weights
from ..files.images import read_image, to_rgb
from .onnx_file import import_onnx, write_onnx
from .portable import Portable, check_transform, portable_from, portable_of, transform_of

log = logging.getLogger("anchoropt_plugin")

ImageLike = str | Path | Image.Image

BATCH_SIZE = 100
"""Images that exported class weights encode at once."""


_ONE_AT_A_TIME = threading.Lock()
"""A trainer notes which images its encoder got: those of two threads must not mix."""


class Predictor:
    """A trained model and its class names; ``load_predictor`` makes one.

    It can be pickled: the pickle holds the model, and needs neither the run's folder nor the code
    of its trainer. Several threads can use it.

    Attributes:
        batch_size: images encoded at once, ``DATALOADER.TEST.BATCH_SIZE``.
        transform: of a test, from a PIL image in RGB to a tensor (3, R, R). It does not turn an
            image by its EXIF orientation; calling the predictor does.
    """

    _trainer: Any = None

    def __init__(self, classes: Sequence[str], batch_size: int, transform: Any) -> None:
        self.__dict__["classes"] = tuple(classes)  # where the pickles of earlier versions have them
        self.batch_size = batch_size
        self.transform = transform

    @classmethod
    def of_trainer(cls, trainer: Any) -> Predictor:
        """Return the predictor of a trainer that has loaded its checkpoint."""
        from dassl.data.transforms import build_transform

        names, batch_size = trainer.dm.dataset.classnames, trainer.cfg.DATALOADER.TEST.BATCH_SIZE
        predictor = cls(names, batch_size, build_transform(trainer.cfg, is_train=False))
        predictor._trainer = trainer
        trainer.set_model_mode("eval")
        for module in vars(trainer).values():  # also what the host has not registered
            if isinstance(module, nn.Module):
                module.eval()
        return predictor

    @classmethod
    def of_file(cls, path: Path, backbone: str | None, device: str | None) -> Predictor:
        """Return the predictor of exported class weights; see ``load_predictor``."""
        portable = portable_from(path, backbone)
        assert not isinstance(portable.weights, str)
        portable.model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        predictor = cls(portable.weights.classes, BATCH_SIZE, transform_of(portable.images))
        predictor._portable = portable
        return predictor

    @cached_property
    def _portable(self) -> Portable:
        return portable_of(self._trainer, self.classes)

    def __getstate__(self) -> dict[str, Any]:
        own = {name: value for name, value in vars(self).items() if name != "_trainer"}
        return {**own, "_portable": self._portable}

    def __repr__(self) -> str:
        first, n = ", ".join(self.classes[:3]), len(self.classes)
        return f"{type(self).__name__}({n} classes: {first}{', …' if n > 3 else ''})"

    @property
    def classes(self) -> tuple[str, ...]:
        """C class names in the order of their labels; classes may share a name.

        They cannot be changed: the model was made for them.
        """
        return tuple(self.__dict__["classes"])

    @property
    def model(self) -> nn.Module:
        """The model in plain PyTorch: images (B, 3, R, R) of ``transform`` → probabilities (B, C).

        Made at the first use, for batches of one image or more.
        ``torch.export.export(model, (images,), strict=False)`` and
        ``torch.jit.trace(model, images)`` take it.

        Raises:
            UserError: the model draws a position matrix at each test (SAMPLE_AT_EVAL).
        """
        model: nn.Module = self._portable.model
        return model

    def export(self, path: str | Path) -> None:
        """Write the model to a file that is used without this package.

        Args:
            path: a file that ends in ``.safetensors`` or ``.npz``, for class weights, or in
                ``.onnx``, for a program from images to probabilities, in batches of one image or
                more. The page "Use it elsewhere" of the documentation has the content of both.

        Raises:
            UserError: another suffix; a predictor on a GPU; class weights of a model that has none,
                as its prompts depend on the image (CoCoOp) or its image tower is prompted (MaPLe);
                or a program that does not give the probabilities of this predictor.
        """
        path = Path(path)
        check_suffix(path)
        if self._device.type != "cpu":
            raise UserError("export needs a predictor on the CPU: load_predictor(…, device='cpu')")
        portable = self._portable
        check_transform(portable.images, self.transform)
        weights = portable.weights
        if path.suffix != ".onnx" and isinstance(weights, str):
            raise UserError(f"{weights}; export to .onnx")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".onnx":
            generator = torch.Generator().manual_seed(0)
            images = torch.randn(3, 3, *portable.images.size, generator=generator)
            texts = {"classes": json.dumps(self.classes), **portable.images.texts()}
            write_onnx(portable.model, self._tested, images, texts, path)
        elif not isinstance(weights, str):
            write_class_weights(weights, path)

    def __call__(self, image: ImageLike) -> dict[str, float]:
        """Return the probabilities of an image by class name, the most likely class first.

        Raises:
            UserError: the image cannot be read.
        """
        return self.by_name(self.probabilities([image])[0])

    def by_name(self, probabilities: Tensor) -> dict[str, float]:
        """Return probabilities (C,) by class name, the most likely class first.

        Classes that share a name, as in ImageNet, are added up.
        """
        sums: dict[str, float] = {}
        for name, probability in zip(self.classes, probabilities.tolist(), strict=True):
            sums[name] = sums.get(name, 0.0) + probability
        return dict(sorted(sums.items(), key=lambda entry: entry[1], reverse=True))

    @torch.no_grad()
    def probabilities(self, images: Sequence[ImageLike]) -> Tensor:
        """Return probabilities (n, C) of n paths or PIL images: float32, on the CPU.

        Raises:
            UserError: an image cannot be read, or one image alone or arrays are given.
        """
        if isinstance(images, ImageLike):  # a path is a sequence of letters
            raise UserError(f"one image alone is given, {images}: give a list of images")
        starts = range(0, len(images), self.batch_size)
        parts = [self._batch(images[start : start + self.batch_size]) for start in starts]
        return torch.cat(parts) if parts else torch.zeros(0, len(self.classes))

    def _batch(self, images: Sequence[ImageLike]) -> Tensor:
        for x in images:
            if not isinstance(x, ImageLike):
                raise UserError(
                    f"an image is given as {type(x).__name__}: give its path, or a PIL image "
                    "(PIL.Image.fromarray)"
                )
        pixels = torch.stack([self.transform(_rgb(image)) for image in images])
        with torch.autocast(self._device.type, enabled=False):  # a test has none around it
            return self._probabilities(pixels)

    def _probabilities(self, pixels: Tensor) -> Tensor:
        """Return probabilities (B, C), on the CPU, of transformed images (B, 3, R, R)."""
        if self._trainer is None:
            return self._tested(pixels.to(self._device)).cpu()
        zeros = torch.zeros(len(pixels), dtype=torch.long)
        batch = {
            "img": pixels,
            "label": zeros,
            "domain": zeros,
            "impath": [""] * len(pixels),
            "index": zeros,
        }
        with _ONE_AT_A_TIME:
            inputs = self._trainer.parse_batch_test(batch)[0]
            return probabilities(self._trainer.model_inference(inputs)).cpu()

    def _tested(self, images: Tensor) -> Tensor:
        """Return probabilities (B, C) of images (B, 3, R, R), as a test computes them."""
        if self._trainer is None:
            found: Tensor = self.model(images)
            return found
        return probabilities(self._trainer.model_inference(images))

    @property
    def _device(self) -> torch.device:
        if self._trainer is None:
            return next(self.model.parameters()).device
        return torch.device(self._trainer.device)


def check_suffix(path: Path) -> None:
    """Check that ``Predictor.export`` can write ``path``.

    Raises:
        UserError: another suffix, or missing packages.
    """
    if path.suffix not in (*SUFFIXES, ".onnx"):
        raise UserError(f"{path}: give a file that ends in {', '.join(SUFFIXES)} or .onnx")
    if path.suffix == ".onnx":
        import_onnx()


def _rgb(image: ImageLike) -> Image.Image:
    if not isinstance(image, Image.Image):
        return read_image(image, upright=True)
    try:
        return to_rgb(image, upright=True)
    except ValueError as error:
        raise UserError(f"a PIL image of mode {image.mode} cannot be used: {error}") from None

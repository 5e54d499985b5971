"""From an output folder to the classes of images, with the probabilities of a test."""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ..config.record import CLASSES, RECORD, final_epoch, merge_record
from ..encoders.clip_models import first_twins, words_of
from ..errors import UserError, nearest
from ..files.class_weights import SUFFIXES, write_class_weights
from ..files.images import read_image, to_rgb
from ..files.readers import read_json
from .onnx_file import import_onnx, write_onnx
from .portable import Portable, check_transform, portable_from, portable_of, transform_of
from .run_record import RUN_RECORD, read_record
from .settings import extend_cfg
from .trainer_registry import two_stages_on_demand
from .two_stages import TwoStages
from .without_data import without_data

log = logging.getLogger("anchoropt_plugin")

ImageLike = str | Path | Image.Image

_WARNING = "Warning: "
BATCH_SIZE = 100
"""Images that exported class weights encode at once."""


class Predictor:
    """A trained model and its class names; ``load_predictor`` makes one.

    It can be pickled: the pickle holds the model, and needs neither the run's folder nor the code
    of its trainer.

    Attributes:
        classes: C class names in the order of their labels; classes may share a name.
        batch_size: images encoded at once, ``DATALOADER.TEST.BATCH_SIZE``.
        transform: of a test, from a PIL image in RGB to a tensor (3, R, R).
    """

    _trainer: Any = None

    def __init__(self, classes: Sequence[str], batch_size: int, transform: Any) -> None:
        self.classes = list(classes)
        self.batch_size = batch_size
        self.transform = transform

    @classmethod
    def _of_trainer(cls, trainer: Any) -> Predictor:
        from dassl.data.transforms import build_transform

        names, batch_size = trainer.dm.dataset.classnames, trainer.cfg.DATALOADER.TEST.BATCH_SIZE
        predictor = cls(names, batch_size, build_transform(trainer.cfg, is_train=False))
        predictor._trainer = trainer
        trainer.set_model_mode("eval")
        return predictor

    @classmethod
    def _of_file(cls, path: Path, backbone: str | None, device: str | None) -> Predictor:
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

    @property
    def model(self) -> nn.Module:
        """The model in plain PyTorch: images (B, 3, R, R) of ``transform`` → probabilities (B, C).

        Made at the first use. ``torch.export.export(model, (images,), strict=False)`` and
        ``torch.jit.trace(model, images)`` take it, for batches of any size.

        Raises:
            UserError: the model draws a position matrix at each test (SAMPLE_AT_EVAL).
        """
        model: nn.Module = self._portable.model
        return model

    def export(self, path: str | Path) -> None:
        """Write the model to a file that is used without this package.

        Args:
            path: a file that ends in ``.safetensors`` or ``.npz``, for class weights, or in
                ``.onnx``, for a program from images to probabilities, in batches of any size. The
                page "Use it elsewhere" of the documentation has the content of both.

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
            UserError: an image cannot be read.
        """
        starts = range(0, len(images), self.batch_size)
        parts = [self._batch(images[start : start + self.batch_size]) for start in starts]
        return torch.cat(parts) if parts else torch.zeros(0, len(self.classes))

    def _batch(self, images: Sequence[ImageLike]) -> Tensor:
        rgb = [
            to_rgb(x, upright=True) if isinstance(x, Image.Image) else read_image(x, upright=True)
            for x in images
        ]
        pixels = torch.stack([self.transform(image) for image in rgb])
        if self._trainer is None:
            return self._tested(pixels.to(self._device)).cpu()
        zeros = torch.zeros(len(rgb), dtype=torch.long)
        batch = {
            "img": pixels,
            "label": zeros,
            "domain": zeros,
            "impath": [""] * len(rgb),
            "index": zeros,
        }
        inputs = self._trainer.parse_batch_test(batch)[0]
        return self._trainer.model_inference(inputs).float().softmax(-1).cpu()

    def _tested(self, images: Tensor) -> Tensor:
        """Return probabilities (B, C) of images (B, 3, R, R), as a test computes them."""
        if self._trainer is None:
            probabilities: Tensor = self.model(images)
            return probabilities
        return self._trainer.model_inference(images).float().softmax(-1)

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


def load_predictor(
    model_dir: str | Path,
    classes: Sequence[str] | None = None,
    epoch: int | None = None,
    *,
    backbone: str | None = None,
    device: str | None = None,
) -> Predictor:
    """Load the model that a run trained.

    Args:
        model_dir: the run's output folder, with ``config.yaml`` and checkpoints; or class weights
            that ``Predictor.export`` wrote, a file that ends in ``.safetensors`` or ``.npz`` and
            needs no trainer.
        classes: class names to choose from; None takes those of the run, from ``classes.json``.
            They may differ from the run's: as at test, ``_AnchorOPT`` averages with the anchor
            logits if a class was not trained.
        epoch: epoch of the checkpoint; None takes the one that the run tests at its end.
        backbone: name or file of the CLIP of class weights, if it is elsewhere now.
        device: "cpu" or "cuda"; None takes a GPU if there is one, and if the run may use it.

    Returns:
        The predictor, its model in eval mode.

    Raises:
        UserError: the folder holds no such run or checkpoint, its trainer is not registered (import
            its module first), or the classes do not fit. Class weights are damaged, belong to
            another CLIP, or were asked for other classes.

    Example::

        import trainers  # registers this repository's trainers
        from anchoropt_plugin import load_predictor

        predictor = load_predictor("output/base")
        predictor("cat.jpg")  # {"cat": 0.93, "dog": 0.05, ...}
    """
    if isinstance(classes, str):  # a sequence of letters
        raise UserError(f"the class names are the str {classes!r}: give a list of names")
    folder = Path(model_dir).expanduser()
    _check_device(device)
    if folder.suffix in SUFFIXES and not folder.is_dir():
        if classes is not None or epoch is not None:
            raise UserError(
                f"{folder} holds the weights of its own classes and epoch alone: give the output "
                "folder of the run, or export again"
            )
        return Predictor._of_file(folder, backbone, device)
    if folder.is_file():
        raise UserError(
            f"{folder} is neither the output folder of a run nor class weights "
            f"({', '.join(SUFFIXES)}): onnxruntime runs an exported .onnx file"
        )
    if backbone is not None:
        raise UserError(
            f"{folder} is not a file of class weights: backbone (--backbone) is for these alone"
        )
    with contextlib.redirect_stdout(io.StringIO()) as printed:  # Dassl and hosts tell what they do
        predictor = _of_run(folder, classes, epoch, device)
    log.debug("%s", printed.getvalue())
    if classes is not None:  # the training told them of its own classes
        told = (line for line in printed.getvalue().splitlines() if line.startswith(_WARNING))
        for line in dict.fromkeys(told):
            log.warning("%s", line.removeprefix(_WARNING))
    return predictor


def _of_run(
    folder: Path, classes: Sequence[str] | None, epoch: int | None, device: str | None
) -> Predictor:
    """Return the predictor of a run's output folder; see ``load_predictor``."""
    cfg = _recorded_cfg(folder, device)
    names = _named(_recorded_classes(folder) if classes is None else list(classes))
    twins = None if classes is None else first_twins(names)  # ImageNet has two of one name
    if twins:
        first, second = (names[place] for place in twins)
        raise UserError(f"the classes {first!r} and {second!r} are one to CLIP: give one of them")
    trainer = without_data(_trainer_class(cfg.TRAINER.NAME), names)(cfg)
    if epoch is None:
        epoch = final_epoch(folder, trainer.get_model_names()[0])
    try:
        trainer.load_model(str(folder), epoch=epoch)
    except (KeyError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{folder} does not fit {cfg.TRAINER.NAME}: {reason}") from error
    if isinstance(trainer, TwoStages) and not trainer.anchoropt.has_anchors:
        raise UserError(
            f"the checkpoint in {folder} has no anchors, it belongs to the plain host: give the "
            f"output folder of a run of {cfg.TRAINER.NAME}"
        )
    return Predictor._of_trainer(trainer)


def _check_device(device: str | None) -> None:
    if device not in (None, "cpu", "cuda"):
        raise UserError(f"device is {device!r}: give 'cpu' or 'cuda'")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device is 'cuda', but torch finds no GPU: give 'cpu'")


def _recorded_cfg(folder: Path, device: str | None = None) -> Any:
    """Return the configuration that a run was trained with."""
    from dassl.config import get_cfg_default

    if not (folder / RECORD).is_file():
        raise UserError(
            f"{folder} has no {RECORD}: give the output folder of a run of this repository's "
            "train.py, or of an _AnchorOPT trainer; or a file of exported class weights"
        )
    cfg = get_cfg_default()
    extend_cfg(cfg)
    merge_record(cfg, folder)
    cfg.MODEL.INIT_WEIGHTS = ""  # the checkpoint holds everything that was trained
    if (folder / RUN_RECORD).is_file():
        # config.yaml does not say which values were given, but arguments of @anchoropt change only
        # the others.
        record = read_record(folder / RUN_RECORD)
        for name, value in record["settings"].items():
            cfg.TRAINER.ANCHOROPT[name.upper()] = value
    if device is not None:
        cfg.USE_CUDA = device == "cuda"
    cfg.freeze()
    return cfg


def _recorded_classes(folder: Path) -> list[str]:
    if not (folder / CLASSES).is_file():
        raise UserError(f"{folder} has no {CLASSES}: give the class names (predict: --classes)")
    names = read_json(folder / CLASSES)
    if not isinstance(names, list):
        raise UserError(
            f"{folder / CLASSES} is not a list of class names: give them (predict: --classes)"
        )
    return names


def _named(names: list[str]) -> list[str]:
    """Return the class names; raise ``UserError`` if one is empty."""
    if not names or not all(isinstance(name, str) and words_of(name) for name in names):
        raise UserError("a class without a name was given: give one or more names, none empty")
    return names


def _trainer_class(name: str) -> type:
    from dassl.engine import TRAINER_REGISTRY

    with two_stages_on_demand():
        known = [*TRAINER_REGISTRY.registered_names()]
        if name not in known:
            raise UserError(
                f"the run's trainer {name!r} is not registered{nearest(name, known)}: import its "
                "module first (predict: --import MODULE); registered: "
                f"{', '.join(sorted(known)) or 'none'}"
            )
        trainer: type = TRAINER_REGISTRY.get(name)
    return trainer

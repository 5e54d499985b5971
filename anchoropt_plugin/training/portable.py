"""A trained model without its trainer: in plain PyTorch, as class weights, or as ONNX."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ..encoders.clip_models import load_clip
from ..encoders.image_classifier import ImageClassifier, digest_of
from ..errors import UserError
from ..files.class_weights import ClassWeights, ImageInput, read_class_weights
from .backbone import load_backbone
from .test_rule import TestRule
from .tested_model import TestedModel
from .traced import check_program, traced

TOLERANCE = 1e-3
"""Largest difference of logits in float32, which are up to 100: a product in another order."""
HALF_TOLERANCE = 0.5


@dataclass
class Portable:
    """A model that needs neither a trainer nor its code; it can be pickled.

    Attributes:
        model: images (B, 3, R, R) → probabilities (B, C).
        images: what the model takes.
        weights: the same classifier as class weights, or a message why there are none.
    """

    model: nn.Module
    images: ImageInput
    weights: ClassWeights | str

    def __getstate__(self) -> dict[str, Any]:
        if isinstance(self.model, ImageClassifier):
            return self.__dict__
        # Its trainer cannot be pickled, and would need the host's code.
        program: Any = self.model
        if isinstance(program, TestedModel):
            program = traced(program, program.trainers, program.random_images(3), program.tolerance)
        stored = io.BytesIO()
        with warnings.catch_warnings():
            # Of a deprecation: files of torch.export, the successor, depend on torch's release.
            warnings.simplefilter("ignore")
            torch.jit.save(program, stored)
        return {**self.__dict__, "model": stored.getvalue()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self.model, bytes):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.model = torch.jit.load(io.BytesIO(self.model), map_location="cpu")


def portable_of(trainer: Any, classes: Sequence[str]) -> Portable:
    """Return the model of a trainer, whose weights are loaded, for C ``classes``.

    Raises:
        UserError: the model cannot be taken out of its trainer.
    """
    given = trainer.cfg.INPUT
    normalises = "normalize" in given.TRANSFORMS
    images = ImageInput(
        [int(side) for side in given.SIZE],
        given.INTERPOLATION,
        [float(x) for x in given.PIXEL_MEAN] if normalises else [0.0] * 3,
        [float(x) for x in given.PIXEL_STD] if normalises else [1.0] * 3,
    )
    tested = TestedModel(trainer).eval()
    check_program(tested, tested.trainers, tested.random_images(3), tested.tolerance)
    clip = load_backbone(trainer.cfg)
    weights = _class_weights(trainer, tested)
    refusal = f"{type(trainer).__name__} has no class weights: "
    if weights is None:
        return Portable(tested, images, f"{refusal}its text features depend on the image")
    node = trainer.cfg.MODEL.BACKBONE
    found = ClassWeights(
        weights.cpu(),
        float(clip.logit_scale.exp()),
        list(classes),
        _absolute(node.NAME),
        _absolute(node.get("CONFIG", "")),
        digest_of(clip.visual),
        images,
    )
    classifier = _classifier(clip, found).to(trainer.device)
    if not _is_same(trainer, classifier, tested.random_images(4)):
        return Portable(
            tested,
            images,
            f"{refusal}its logits are not scaled cosines with the features of CLIP's own image "
            "tower, which is prompted, or a further head counts",
        )
    return Portable(classifier, images, found)


def portable_from(path: Path, backbone: str | None) -> Portable:
    """Return the classifier of a file of class weights.

    Args:
        path: the file.
        backbone: replaces the name or file of the CLIP.

    Raises:
        UserError: a damaged file, another CLIP than the one of the export, or other sizes than its.
    """
    weights = read_class_weights(path)
    clip = load_clip(backbone or weights.backbone, config=weights.config)
    if digest_of(clip.visual) != weights.image_tower:
        raise UserError(
            f"{path} belongs to another CLIP than {backbone or weights.backbone}: give the weights "
            "that the prompt was trained with as backbone (predict: --backbone)"
        )
    side, width = clip.visual.input_resolution, clip.visual.output_dim
    if weights.images.size != [side, side] or weights.weights.shape[1] != width:
        raise UserError(
            f"{path} has images of {weights.images.size} and weights of {weights.weights.shape[1]} "
            f"numbers, but its CLIP takes {[side, side]} and gives {width}: export the run again"
        )
    return Portable(_classifier(clip, weights), weights.images, weights)


def _absolute(name: str) -> str:
    """Return the absolute path of a file or folder; other names stay."""
    path = Path(name).expanduser()
    return str(path.resolve()) if name and path.exists() else name


def _classifier(clip: Any, given: ClassWeights) -> ImageClassifier:
    return ImageClassifier(clip.visual, given.weights, given.logit_scale).eval()


@torch.no_grad()
def _class_weights(trainer: Any, tested: TestedModel) -> Tensor | None:
    """Return the weights (C, e) of a trainer's classes; None if they depend on the image."""
    features = tested.text_features
    prompts = None if features is None else F.normalize(features.float(), dim=-1)
    rule: TestRule | None = getattr(trainer, "anchoropt_rule", None)
    return prompts if rule is None else rule.weights(prompts)


@torch.no_grad()
def _is_same(trainer: Any, classifier: ImageClassifier, images: Tensor) -> bool:
    there, here = trainer.model_inference(images), classifier.logits(images)
    if there.shape != here.shape:
        return False
    tolerance = HALF_TOLERANCE if there.dtype == torch.float16 else TOLERANCE
    difference = there.float().log_softmax(-1) - here.log_softmax(-1)
    return bool(difference.abs().max() <= tolerance)  # False for NaN


def transform_of(images: ImageInput) -> Any:
    """Return the transform of a test, from an image to a tensor (3, H, W)."""
    from dassl.config import get_cfg_default
    from dassl.data.transforms import build_transform

    cfg = get_cfg_default()
    cfg.INPUT.SIZE, cfg.INPUT.INTERPOLATION = tuple(images.size), images.interpolation
    cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD = images.mean, images.std
    cfg.INPUT.TRANSFORMS = ("normalize",)
    with contextlib.redirect_stdout(io.StringIO()):
        return build_transform(cfg, is_train=False)


def check_transform(images: ImageInput, transform: Any) -> None:
    """Check that ``images`` describes a transform in full.

    Raises:
        UserError: the transform gives another tensor.
    """
    height, width = images.size
    sample = Image.effect_noise((2 * width, 3 * height), 100).convert("RGB")
    if not torch.equal(transform(sample), transform_of(images)(sample)):
        raise UserError(
            "the predictor's transform is not the resize, crop and normalisation of its run, which "
            "is all that an exported file can describe: leave predictor.transform as it was "
            "loaded, and train without instance_norm (INPUT.TRANSFORMS)"
        )

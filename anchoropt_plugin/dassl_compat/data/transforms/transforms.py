"""Transforms by name, always in the same order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torchvision.transforms as T
from torch import Tensor
from torchvision.transforms import AutoAugmentPolicy, InterpolationMode
from yacs.config import CfgNode

from ...utils.registry import check_availability
from .pixel_table import with_table

INTERPOLATION_MODES = {
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
    "nearest": InterpolationMode.NEAREST,
}


class Random2DTranslation(torch.nn.Module):
    """Resize to ``size`` or, with probability 1/2, to 9/8 of ``size`` with a random crop."""

    def __init__(self, size: Sequence[int]) -> None:
        super().__init__()
        self.plain = T.Resize(size)
        larger = [round(side * 1.125) for side in size]
        self.moved = T.Compose([T.Resize(larger), T.RandomCrop(size)])

    def forward(self, image: Any) -> Any:
        return self.moved(image) if torch.rand(()) < 0.5 else self.plain(image)


class Cutout(torch.nn.Module):
    """Set ``n_holes`` squares of side ``length``, clipped at the edges, to 0 in (C, H, W)."""

    def __init__(self, n_holes: int, length: int) -> None:
        super().__init__()
        self.n_holes = n_holes
        self.length = length

    def forward(self, image: Tensor) -> Tensor:
        image = image.clone()
        height, width = image.shape[1:]
        for _ in range(self.n_holes):
            top = int(torch.randint(height, ())) - self.length // 2
            left = int(torch.randint(width, ())) - self.length // 2
            rows = slice(max(top, 0), top + self.length)
            image[:, rows, max(left, 0) : left + self.length] = 0.0
        return image


class GaussianNoise(torch.nn.Module):
    """Add normal noise with probability 1/2."""

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.mean = mean
        self.std = std

    def forward(self, image: Tensor) -> Tensor:
        if torch.rand(()) < 0.5:
            return image
        return image + torch.randn_like(image) * self.std + self.mean


class InstanceNormalization(torch.nn.Module):
    """Normalise each channel of (C, H, W) by its own mean and standard deviation."""

    def forward(self, image: Tensor) -> Tensor:
        std, mean = torch.std_mean(image, dim=(1, 2), keepdim=True)
        return (image - mean) / (std + 1e-8)


def interpolation_mode(cfg: CfgNode) -> InterpolationMode:
    """Return torchvision's mode for ``cfg.INPUT.INTERPOLATION``.

    Raises:
        UserError: an unknown name.
    """
    check_availability(cfg.INPUT.INTERPOLATION, INTERPOLATION_MODES, "INPUT.INTERPOLATION")
    return INTERPOLATION_MODES[cfg.INPUT.INTERPOLATION]


_Build = Callable[[CfgNode], Any]

# In order of application: first those on images, then those on tensors.
_ON_IMAGES: dict[str, _Build] = {
    "random_translation": lambda i: Random2DTranslation(i.SIZE),
    "random_crop": lambda i: T.RandomCrop(i.SIZE, padding=i.CROP_PADDING),
    "random_resized_crop": lambda i: T.RandomResizedCrop(
        i.SIZE, scale=i.RRCROP_SCALE, interpolation=INTERPOLATION_MODES[i.INTERPOLATION]
    ),
    "random_flip": lambda i: T.RandomHorizontalFlip(),
    "imagenet_policy": lambda i: T.AutoAugment(AutoAugmentPolicy.IMAGENET),
    "cifar10_policy": lambda i: T.AutoAugment(AutoAugmentPolicy.CIFAR10),
    "svhn_policy": lambda i: T.AutoAugment(AutoAugmentPolicy.SVHN),
    "randaugment": lambda i: T.RandAugment(i.RANDAUGMENT_N, i.RANDAUGMENT_M),
    "colorjitter": lambda i: T.ColorJitter(
        i.COLORJITTER_B, i.COLORJITTER_C, i.COLORJITTER_S, i.COLORJITTER_H
    ),
    "randomgrayscale": lambda i: T.RandomGrayscale(i.RGS_P),
    "gaussian_blur": lambda i: T.RandomApply([T.GaussianBlur(i.GB_K)], p=i.GB_P),
}
_ON_TENSORS: dict[str, _Build] = {
    "cutout": lambda i: Cutout(i.CUTOUT_N, i.CUTOUT_LEN),
    "normalize": lambda i: T.Normalize(i.PIXEL_MEAN, i.PIXEL_STD),
    "gaussian_noise": lambda i: GaussianNoise(i.GN_MEAN, i.GN_STD),
    "instance_norm": lambda i: InstanceNormalization(),
}
_AT_TEST = ("normalize", "instance_norm")
# Every test transform crops the centre, so the name center_crop is valid and changes nothing.
_CHOICES = [*_ON_IMAGES, *_ON_TENSORS, "center_crop"]


def build_transform(
    cfg: CfgNode, is_train: bool = True, choices: Sequence[str] | None = None
) -> T.Compose | None:
    """Return the transform of ``cfg.INPUT``, from a PIL image to a float tensor (3, H, W).

    The order is fixed and does not depend on the order of the names. Training: resizing (only
    without crops), translation, random crop, random resized crop, flip, policies, jitter, grey,
    blur, to tensor, cutout, normalisation, noise. Test: the short edge to the larger side of
    ``SIZE``, centre crop, to tensor, normalisation.

    Args:
        cfg: the configuration.
        is_train: training or test.
        choices: names that replace ``cfg.INPUT.TRANSFORMS``.

    Returns:
        The transform, or None if ``cfg.INPUT.NO_TRANSFORM`` is set.

    Raises:
        UserError: an unknown name.
    """
    given = cfg.INPUT
    if given.NO_TRANSFORM:
        print("Note: no transform is applied!")
        return None
    names = given.TRANSFORMS if choices is None else choices
    for name in names:
        check_availability(name, _CHOICES, "a name in INPUT.TRANSFORMS")
    mode = interpolation_mode(cfg)

    steps: list[Any] = []
    if not is_train:
        steps += [T.Resize(max(given.SIZE), interpolation=mode), T.CenterCrop(given.SIZE)]
    elif "random_crop" not in names and "random_resized_crop" not in names:
        steps.append(T.Resize(given.SIZE, interpolation=mode))
    if is_train:
        steps += [build(given) for name, build in _ON_IMAGES.items() if name in names]
    steps.append(T.ToTensor())
    steps += [
        build(given)
        for name, build in _ON_TENSORS.items()
        if name in names and (is_train or name in _AT_TEST)
    ]
    print(f"Building transform_{'train' if is_train else 'test'}")
    for step in steps:
        print(f"+ {step}")
    if not is_train and "normalize" not in names:  # the host's model may do so itself
        print(
            "Note: INPUT.TRANSFORMS has no normalize, so images have values from 0 to 1 "
            "in training and test, where CLIP takes normalised ones: add normalize, unless the "
            "model does so"
        )
    return T.Compose(with_table(steps))

"""Transforms: the fixed order, against the same steps composed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision.transforms as T
from PIL import Image

from anchoropt_plugin import UserError
from dassl.config import get_cfg_default
from dassl.data.transforms import build_transform

MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
BICUBIC = T.InterpolationMode.BICUBIC


@pytest.fixture
def image():
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def cfg():
    cfg = get_cfg_default()
    cfg.INPUT.SIZE, cfg.INPUT.INTERPOLATION = (24, 16), "bicubic"
    cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD = MEAN, STD
    return cfg


def assert_same(cfg, image, names, by_hand, is_train=True):
    cfg.INPUT.TRANSFORMS = names
    transform = build_transform(cfg, is_train=is_train)
    for seed in range(5):
        torch.manual_seed(seed)
        got = transform(image)
        torch.manual_seed(seed)
        assert torch.equal(got, T.Compose(by_hand)(image))
    assert got.shape == (3, 24, 16)
    assert got.dtype == torch.float32


@pytest.mark.parametrize(
    "names",
    [
        ("random_resized_crop", "random_flip", "normalize"),
        ("normalize", "random_flip", "random_resized_crop"),
    ],
)
def test_training_recipe_in_any_order_of_names(cfg, image, names):
    by_hand = [
        T.RandomResizedCrop((24, 16), scale=(0.08, 1.0), interpolation=BICUBIC),
        T.RandomHorizontalFlip(),
        T.ToTensor(),
        T.Normalize(MEAN, STD),
    ]
    assert_same(cfg, image, names, by_hand)


def test_without_a_crop_the_image_is_resized(cfg, image):
    by_hand = [T.Resize((24, 16), interpolation=BICUBIC), T.ToTensor()]
    assert_same(cfg, image, (), by_hand)


def test_many_at_once(cfg, image):
    by_hand = [
        T.RandomCrop((24, 16), padding=4),
        T.RandAugment(2, 10),
        T.ColorJitter(0.4, 0.4, 0.4, 0.1),
        T.RandomGrayscale(0.2),
        T.RandomApply([T.GaussianBlur(21)], p=0.5),
        T.ToTensor(),
        T.Normalize(MEAN, STD),
    ]
    names = (
        "normalize", "gaussian_blur", "randomgrayscale", "colorjitter", "randaugment",
        "random_crop",
    )  # fmt: skip
    assert_same(cfg, image, names, by_hand)


def test_what_is_no_rgb_image_goes_through_torchvision(cfg, image):
    pixels = np.asarray(image)
    cfg.INPUT.TRANSFORMS, cfg.INPUT.SIZE = ("normalize",), pixels.shape[:2]
    *_, table = build_transform(cfg).transforms
    by_hand = T.Compose([T.ToTensor(), T.Normalize(MEAN, STD)])
    assert torch.equal(table(pixels), by_hand(pixels))
    assert torch.equal(table(image), by_hand(image))


def test_test_transform_ignores_augmentation(cfg, image):
    by_hand = [
        T.Resize(24, interpolation=BICUBIC),
        T.CenterCrop((24, 16)),
        T.ToTensor(),
        T.Normalize(MEAN, STD),
    ]
    names = ("random_resized_crop", "random_flip", "cutout", "gaussian_noise", "normalize")
    assert_same(cfg, image, names, by_hand, is_train=False)


def test_translation_keeps_the_size(cfg, image):
    cfg.INPUT.TRANSFORMS = ("random_translation",)
    transform = build_transform(cfg)
    torch.manual_seed(0)
    views = [transform(image) for _ in range(8)]
    assert {tuple(view.shape) for view in views} == {(3, 24, 16)}
    assert any(not torch.equal(views[0], view) for view in views)


def test_steps_on_tensors(cfg, image):
    cfg.INPUT.TRANSFORMS, cfg.INPUT.CUTOUT_LEN = ("cutout",), 6
    white = Image.new("RGB", (24, 16), "white")
    torch.manual_seed(1)
    hole = build_transform(cfg)(white)[0] == 0
    assert 9 <= hole.sum() <= 36, "a square of 6, clipped to a quarter of it at worst"

    normalised = build_transform(cfg, choices=["instance_norm"])(image)
    assert torch.allclose(normalised.mean(dim=(1, 2)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(normalised.std(dim=(1, 2)), torch.ones(3), atol=1e-5)

    noisy, plain = (
        build_transform(cfg, choices=["gaussian_noise"]),
        build_transform(cfg, choices=[]),
    )
    torch.manual_seed(0)
    spreads = {round(float((noisy(white) - plain(white)).std()), 2) for _ in range(8)}
    assert spreads <= {0.0, 0.14, 0.15, 0.16}
    assert len(spreads) > 1


def test_images_that_are_not_normalised_are_told(cfg, capsys):
    for names, is_told in (["random_resized_crop"], True), (["random_flip", "normalize"], False):
        cfg.INPUT.TRANSFORMS = names
        build_transform(cfg, is_train=False)
        assert ("has no normalize" in capsys.readouterr().out) == is_told


def test_no_transform_and_unknown_names(cfg):
    with pytest.raises(UserError, match=r"'random_flop' \(did you mean 'random_flip'\?\)"):
        build_transform(cfg, choices=["random_flop"])
    cfg.INPUT.INTERPOLATION = "cubic"
    with pytest.raises(UserError, match=r"INPUT\.INTERPOLATION is 'cubic'"):
        build_transform(cfg)
    cfg.INPUT.NO_TRANSFORM = True
    assert build_transform(cfg) is None

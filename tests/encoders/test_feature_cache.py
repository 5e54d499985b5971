"""Cached image features against the encoder itself."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from anchoropt_plugin import restore
from anchoropt_plugin.encoders import feature_cache
from anchoropt_plugin.encoders.feature_cache import cache_image_features
from tests.conftest import random_clip


class CountingEncoder(nn.Module):
    """An image encoder that counts the images it encodes."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder
        self.n_encoded = 0

    def forward(self, images, prompts=None):
        self.n_encoded += len(images)
        features = self.encoder(images)
        return features if prompts is None or not len(prompts) else features + prompts.sum()


@pytest.fixture
def encoder():
    return CountingEncoder(random_clip().visual).requires_grad_(False).eval()


@torch.no_grad()
def test_repeated_images_are_not_encoded_again(encoder):
    images = torch.randn(6, 3, 32, 32)
    plain = encoder(images)
    cached = cache_image_features(encoder)
    encoder.n_encoded = 0
    first = encoder(images[:4])
    again = encoder(images[[3, 5, 0, 0]])
    assert encoder.n_encoded == 5 and (cached.hits, cached.misses) == (3, 5)
    torch.testing.assert_close(first, plain[:4])
    torch.testing.assert_close(again, plain[[3, 5, 0, 0]])


@torch.no_grad()
def test_an_image_that_differs_in_one_bit_is_another_image(encoder):
    image = torch.randn(1, 3, 32, 32)
    cache_image_features(encoder)
    encoder(image)
    similar = image.clone()
    similar.view(torch.int32)[0, 2, 31, 31] ^= 1
    encoder(similar)
    swapped = image.clone()
    swapped[0, 0, 0, 0], swapped[0, 0, 0, 1] = image[0, 0, 0, 1], image[0, 0, 0, 0]
    encoder(swapped)
    assert encoder.n_encoded == 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@torch.no_grad()
def test_each_dtype_has_its_own_features(dtype):
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4))
    encoder = CountingEncoder(linear).requires_grad_(False)
    images = torch.randn(2, 3, 32, 32)
    cache_image_features(encoder)
    encoder(images)
    encoder.to(dtype)
    assert encoder(images.to(dtype)).dtype == dtype and encoder.n_encoded == 4
    encoder(images.to(dtype))
    assert encoder.n_encoded == 4


def test_loading_weights_empties_the_cache(encoder):
    images = torch.randn(2, 3, 32, 32)
    cache_image_features(encoder)
    encoder(images)
    encoder.encoder.load_state_dict(random_clip(seed=1).visual.state_dict())
    torch.testing.assert_close(encoder(images), random_clip(seed=1).visual(images))


def test_nothing_is_cached_if_the_encoder_or_the_images_are_trained(encoder):
    images = torch.randn(2, 3, 32, 32)
    cached = cache_image_features(encoder)
    encoder.encoder.proj.requires_grad_(True)
    assert encoder(images).requires_grad and cached.misses == 0
    encoder.requires_grad_(False)
    assert encoder(images.requires_grad_()).requires_grad and cached.misses == 0


def test_nothing_is_cached_if_the_encoder_reads_a_trained_tensor_of_another_module(encoder):
    class Outside(nn.Module):
        def forward(self, images):
            features = encoder(images)
            return features + held[0](features)

    images = torch.randn(2, 3, 32, 32)
    width = encoder(images).shape[1]
    held = [nn.Linear(width, width, bias=False)]
    nn.init.zeros_(held[0].weight)
    wrapped = Outside()
    cached = cache_image_features(wrapped)
    with torch.no_grad():
        wrapped(images)
    wrapped(images).square().sum().backward()
    assert held[0].weight.grad.any() and (cached.hits, cached.misses) == (0, 2)


def test_the_encoder_gets_visual_prompts_unless_they_are_empty(encoder):
    images = torch.randn(2, 3, 32, 32)
    cached = cache_image_features(encoder)
    plain = encoder(images, torch.zeros(0, 4))
    assert not torch.equal(encoder(images, torch.ones(1, 4)), plain)
    assert torch.equal(encoder(images, torch.zeros(0, 4)), plain)
    assert (cached.hits, cached.misses) == (2, 2)


def test_nothing_is_cached_while_batch_norm_is_in_training_mode():
    encoder = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten()).requires_grad_(False)
    cached = cache_image_features(encoder)
    encoder.train()(torch.randn(2, 3, 4, 4))
    assert cached.misses == 0
    encoder.eval()(torch.randn(2, 3, 4, 4))
    assert cached.misses == 2


def test_caching_ends_if_every_image_is_new(encoder, monkeypatch):
    monkeypatch.setattr(feature_cache, "PATIENCE", 3)
    cached = cache_image_features(encoder)
    for _ in range(4):
        encoder(torch.randn(2, 3, 32, 32))
    assert cached.misses == 4 and not cached._features


@torch.no_grad()
def test_the_cpu_encodes_a_few_images_at_a_time(encoder, monkeypatch):
    images = torch.randn(7, 3, 32, 32)
    plain = encoder(images)
    monkeypatch.setattr(feature_cache, "PART", 3 * images[0].nbytes + 1)
    encoded, forward = [], encoder.encoder.forward
    encoder.encoder.forward = lambda part: encoded.append(len(part)) or forward(part)
    cache_image_features(encoder)
    torch.testing.assert_close(encoder(images), plain)
    assert encoded == [3, 3, 1]


def test_no_more_than_the_limit_is_cached(encoder, monkeypatch):
    monkeypatch.setattr(feature_cache, "LIMIT", 2)
    cached = cache_image_features(encoder)
    first, second = torch.randn(2, 2, 3, 32, 32)
    for images in (first, second, first):
        encoder(images)
    assert len(cached._features) == 2 and cached.hits == 2


def test_copies_start_with_an_empty_cache_and_restore_ends_caching(encoder):
    images = torch.randn(2, 3, 32, 32)
    cache_image_features(encoder)
    encoder(images)
    copied = copy.deepcopy(encoder)
    assert not copied.forward._features and copied.forward.encoder is copied
    restore(encoder)
    assert "forward" not in vars(encoder)


class OtherEncoder(nn.Module):
    """An image encoder that returns anything but features (B, e)."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, images, flag=False):
        return self.change(images.flatten(1)[:, :4] * (2 if flag else 1))


@pytest.mark.parametrize(
    "change",
    [lambda x: (x, x + 1), lambda x: torch.stack([x, x + 1, x + 2]), lambda x: x.sum(0, True)],
    ids=["pair", "tokens", "sum of all images"],
)
@pytest.mark.parametrize("n", [2, 3, 5])
def test_outputs_that_are_not_one_feature_for_each_image_are_returned_unchanged(change, n):
    """This also holds if there are as many outputs or tokens as images."""
    encoder, images = OtherEncoder(change), torch.randn(n, 3, 4, 4)
    cache_image_features(encoder)
    for batch in (images, images.flip(0)):
        expected = OtherEncoder.forward(encoder, batch)
        output = encoder(batch)
        assert type(output) is type(expected)
        for one, other in zip(output, expected, strict=True):
            assert torch.equal(one, other)


def test_the_encoder_gets_further_arguments():
    encoder, images = OtherEncoder(lambda x: x), torch.randn(2, 3, 4, 4)
    cache_image_features(encoder)
    plain = encoder(images)
    assert torch.equal(encoder(images, True), 2 * plain)


def test_dropout_in_training_mode_draws_new_masks():
    encoder = nn.Sequential(nn.Flatten(), nn.Dropout(0.5)).eval()
    images = torch.randn(2, 3, 4, 4)
    cache_image_features(encoder)
    encoder(images)
    assert (encoder.train()(images) == 0).any()


def test_a_hook_inside_is_called_for_every_batch(encoder):
    cache_image_features(encoder)
    calls = []
    encoder.encoder.transformer.resblocks[-1].register_forward_hook(lambda *_: calls.append(1))
    images = torch.randn(2, 3, 32, 32)
    encoder(images), encoder(images)
    assert len(calls) == 2

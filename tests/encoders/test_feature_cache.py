"""Kept image features against the encoder itself."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from anchoropt_plugin import restore
from anchoropt_plugin.encoders import feature_cache
from anchoropt_plugin.encoders.feature_cache import cache_image_features
from tests.conftest import random_clip


class Counting(nn.Module):
    """An image encoder that counts the pictures it encodes."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder
        self.seen = 0

    def forward(self, images, prompts=None):
        self.seen += len(images)
        features = self.encoder(images)
        return features if prompts is None or not len(prompts) else features + prompts.sum()


@pytest.fixture
def encoder():
    return Counting(random_clip().visual).requires_grad_(False).eval()


def test_pictures_seen_again_are_not_encoded_again(encoder):
    pictures = torch.randn(6, 3, 32, 32)
    plain = encoder(pictures)
    kept = cache_image_features(encoder)
    encoder.seen = 0
    first = encoder(pictures[:4])
    again = encoder(pictures[[3, 5, 0, 0]])
    assert encoder.seen == 5 and (kept.hits, kept.misses) == (3, 5)
    torch.testing.assert_close(first, plain[:4])
    torch.testing.assert_close(again, plain[[3, 5, 0, 0]])


def test_a_picture_that_differs_in_one_bit_is_another_one(encoder):
    picture = torch.randn(1, 3, 32, 32)
    cache_image_features(encoder)
    encoder(picture)
    nearly = picture.clone()
    nearly.view(torch.int32)[0, 2, 31, 31] ^= 1
    encoder(nearly)
    swapped = picture.clone()
    swapped[0, 0, 0, 0], swapped[0, 0, 0, 1] = picture[0, 0, 0, 1], picture[0, 0, 0, 0]
    encoder(swapped)
    assert encoder.seen == 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_dtype_is_its_own(dtype):
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4))
    encoder = Counting(linear).requires_grad_(False)
    pictures = torch.randn(2, 3, 32, 32)
    cache_image_features(encoder)
    encoder(pictures)
    encoder.to(dtype)
    assert encoder(pictures.to(dtype)).dtype == dtype and encoder.seen == 4
    encoder(pictures.to(dtype))
    assert encoder.seen == 4


def test_loading_weights_drops_what_was_kept(encoder):
    pictures = torch.randn(2, 3, 32, 32)
    cache_image_features(encoder)
    encoder(pictures)
    encoder.encoder.load_state_dict(random_clip(seed=1).visual.state_dict())
    torch.testing.assert_close(encoder(pictures), random_clip(seed=1).visual(pictures))


def test_nothing_is_kept_where_something_is_trained(encoder):
    pictures = torch.randn(2, 3, 32, 32)
    kept = cache_image_features(encoder)
    encoder.encoder.proj.requires_grad_(True)
    assert encoder(pictures).requires_grad and kept.misses == 0
    encoder.requires_grad_(False)
    assert encoder(pictures.requires_grad_()).requires_grad and kept.misses == 0


def test_visual_prompts_go_to_the_encoder_and_empty_ones_do_not(encoder):
    pictures = torch.randn(2, 3, 32, 32)
    kept = cache_image_features(encoder)
    plain = encoder(pictures, torch.zeros(0, 4))
    assert not torch.equal(encoder(pictures, torch.ones(1, 4)), plain)
    assert torch.equal(encoder(pictures, torch.zeros(0, 4)), plain)
    assert (kept.hits, kept.misses) == (2, 2)


def test_batch_statistics_are_not_frozen():
    encoder = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten()).requires_grad_(False)
    kept = cache_image_features(encoder)
    encoder.train()(torch.randn(2, 3, 4, 4))
    assert kept.misses == 0
    encoder.eval()(torch.randn(2, 3, 4, 4))
    assert kept.misses == 2


def test_where_every_picture_is_new_it_gives_up(encoder, monkeypatch):
    monkeypatch.setattr(feature_cache, "PATIENCE", 3)
    kept = cache_image_features(encoder)
    for _ in range(4):
        encoder(torch.randn(2, 3, 32, 32))
    assert kept.misses == 4 and not kept._features


def test_the_cpu_encodes_a_few_at_a_time(encoder, monkeypatch):
    pictures = torch.randn(7, 3, 32, 32)
    plain = encoder(pictures)
    monkeypatch.setattr(feature_cache, "PART", 3 * pictures[0].nbytes + 1)
    encoded, forward = [], encoder.encoder.forward
    encoder.encoder.forward = lambda part: encoded.append(len(part)) or forward(part)
    cache_image_features(encoder)
    torch.testing.assert_close(encoder(pictures), plain)
    assert encoded == [3, 3, 1]


def test_no_more_than_the_limit_is_kept(encoder, monkeypatch):
    monkeypatch.setattr(feature_cache, "LIMIT", 2)
    kept = cache_image_features(encoder)
    first, second = torch.randn(2, 2, 3, 32, 32)
    for pictures in (first, second, first):
        encoder(pictures)
    assert len(kept._features) == 2 and kept.hits == 2


def test_copies_start_with_nothing_kept_and_restore_ends_it(encoder):
    pictures = torch.randn(2, 3, 32, 32)
    cache_image_features(encoder)
    encoder(pictures)
    copied = copy.deepcopy(encoder)
    assert not copied.forward._features and copied.forward.encoder is copied
    restore(encoder)
    assert "forward" not in vars(encoder)


class Odd(nn.Module):
    """An image encoder that gives more than features (B, e)."""

    def __init__(self, give):
        super().__init__()
        self.give = give

    def forward(self, images, flag=False):
        return self.give(images.flatten(1)[:, :4] * (2 if flag else 1))


@pytest.mark.parametrize(
    "give",
    [lambda x: (x, x + 1), lambda x: torch.stack([x, x + 1, x + 2]), lambda x: x.sum(0, True)],
    ids=["pair", "tokens", "of all together"],
)
@pytest.mark.parametrize("n", [2, 3, 5])
def test_what_is_not_one_feature_a_picture_passes_through(give, n):
    """Also where the numbers of outputs or tokens and of pictures happen to agree."""
    encoder, pictures = Odd(give), torch.randn(n, 3, 4, 4)
    cache_image_features(encoder)
    for given in (pictures, pictures.flip(0)):
        want = Odd.forward(encoder, given)
        got = encoder(given)
        assert type(got) is type(want)
        for one, other in zip(got, want, strict=True):
            assert torch.equal(one, other)


def test_a_further_argument_goes_to_the_encoder():
    encoder, pictures = Odd(lambda x: x), torch.randn(2, 3, 4, 4)
    cache_image_features(encoder)
    plain = encoder(pictures)
    assert torch.equal(encoder(pictures, True), 2 * plain)


def test_dropout_draws_anew_while_it_trains():
    encoder = nn.Sequential(nn.Flatten(), nn.Dropout(0.5)).eval()
    pictures = torch.randn(2, 3, 4, 4)
    cache_image_features(encoder)
    encoder(pictures)
    assert (encoder.train()(pictures) == 0).any()


def test_a_hook_inside_sees_every_picture(encoder):
    cache_image_features(encoder)
    seen = []
    encoder.encoder.transformer.resblocks[-1].register_forward_hook(lambda *_: seen.append(1))
    pictures = torch.randn(2, 3, 32, 32)
    encoder(pictures), encoder(pictures)
    assert len(seen) == 2

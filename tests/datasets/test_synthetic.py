"""Synthetic images: scenes, drawings, captions, and the parts of the pre-training."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from anchoropt_plugin.datasets.synthetic import (
    BENCHMARK,
    DIGITS,
    Scene,
    Scenes,
    camera,
    caption,
    describe_digit,
    describe_shape,
    drawing,
    pretraining,
    sample_digits,
    sample_shapes,
    vocabulary_text,
)
from anchoropt_plugin.datasets.synthetic.images import benchmark_images, training_images
from anchoropt_plugin.datasets.synthetic.shapes import signed_distance
from anchoropt_plugin.datasets.synthetic.vocabulary import COLOURS, FILLS, SHAPES, STYLES
from anchoropt_plugin.encoders.clip_models import load_clip, tokenize, unknown_words

DESCRIPTIONS = Path(__file__).parents[2] / "configs" / "descriptions"


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scenes_of(**attributes: int) -> Scenes:
    values = {"digit": -1, "shape": 0, "colour": 0, "fill": 0, "large": 1, "background": 1}
    values |= {"style": 0, **attributes}
    return Scenes(**{name: torch.full((8,), value) for name, value in values.items()})


def test_benchmark_is_48_balanced_triples() -> None:
    assert len(set(BENCHMARK)) == 48
    assert list(BENCHMARK) == sorted(BENCHMARK)
    for triple in BENCHMARK:
        assert triple.colour in COLOURS
        assert triple.fill in FILLS
        assert triple.shape in SHAPES
    assert {sum(t.colour == colour for t in BENCHMARK) for colour in COLOURS} == {4}


def test_training_never_shows_a_benchmark_triple() -> None:
    drawn = {
        (scene.colour, scene.fill, scene.thing) for scene in sample_shapes(seeded(), 20000).words()
    }
    assert drawn.isdisjoint(BENCHMARK)
    assert len(drawn) == len(COLOURS) * len(FILLS) * len(SHAPES) - 48


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_fit_their_box_and_differ(shape: str) -> None:
    axis = torch.linspace(-1.5, 1.5, 61)
    v, u = torch.meshgrid(axis, axis, indexing="ij")
    inside = {name: signed_distance(name, u, v) < 0 for name in SHAPES}
    assert 0.03 < inside[shape].float().mean() < 0.4
    assert not inside[shape][(u.abs() > 1.1) | (v.abs() > 1.1)].any()
    assert all(
        (inside[shape] != other).float().mean() > 0.01
        for name, other in inside.items()
        if name != shape
    )


def test_same_seed_same_images() -> None:
    images, scenes = training_images(seeded(5), 40)
    again, scenes_again = training_images(seeded(5), 40)
    other, _ = training_images(seeded(6), 40)
    assert torch.equal(images, again)
    assert scenes.words() == scenes_again.words()
    assert not torch.equal(images, other)


def test_images_are_rgb_in_0_to_1() -> None:
    images, scenes = training_images(seeded(), 40)
    assert images.shape == (40, 3, 32, 32)
    assert images.dtype == torch.float32
    assert images.min() >= 0
    assert images.max() <= 1
    assert int((scenes.digit >= 0).sum()) == 10


def test_colour_is_what_the_scene_says() -> None:
    colours = list(COLOURS)
    scenes = scenes_of(colour=colours.index("red"), background=colours.index("blue"))
    images = drawing.draw_shapes(seeded(), scenes)
    reddish = images[:, 0] > images[:, 2]
    assert 0.1 < reddish.float().mean() < 0.6  # the disc, without the background
    corners = images[:, :, [0, 0, -1, -1], [0, -1, 0, -1]].mean(-1)
    assert (corners[:, 2] > corners[:, 0]).all()


def test_hollow_shapes_show_their_background() -> None:
    hollow = scenes_of(fill=list(FILLS).index("hollow"), colour=10, background=0)
    solid = scenes_of(colour=10, background=0)
    bright = [drawing.draw_shapes(seeded(), scenes).mean() for scenes in (hollow, solid)]
    assert bright[0] < 0.8 * bright[1]


def test_digits_are_written_differently_each_time() -> None:
    scenes = scenes_of(digit=4, shape=-1, colour=10, background=0)
    images = drawing.draw_digits(seeded(), scenes)
    assert all((images[0] - image).abs().mean() > 0.02 for image in images[1:])


def test_blur_keeps_the_mean_and_lowers_the_contrast() -> None:
    images = torch.rand(3, 3, 32, 32, generator=seeded())
    blurred = camera.blur(images, torch.tensor([0.0, 0.5, 1.0]))
    assert torch.allclose(blurred[0], images[0], atol=1e-6)
    assert images[2].std() > blurred[1].std() > blurred[2].std()
    assert torch.allclose(blurred.mean((2, 3)), images.mean((2, 3)), atol=0.02)


def test_noise_has_its_own_strength_on_each_image() -> None:
    grey = torch.full((2, 3, 32, 32), 0.5)
    noisy = camera.add_noise(seeded(), grey, torch.tensor([0.0, 0.1]))
    assert torch.equal(noisy[0], grey[0])
    assert float(noisy[1].std()) == pytest.approx(0.1, rel=0.1)


@pytest.mark.parametrize("style", STYLES)
def test_styles_change_an_image(style: str) -> None:
    scenes = scenes_of(style=list(STYLES).index(style))
    images = drawing.draw_shapes(seeded(), scenes)
    before = images.clone()
    taken = camera.take(seeded(), images, scenes)
    assert torch.equal(images, before)
    change = (taken - images).abs().mean()
    assert change < 0.12 if style == "clean" else change > 0.03


def test_kind_distinguishes_captions() -> None:
    _, scenes = training_images(seeded(), 400)
    kinds: dict[int, set[tuple[object, ...]]] = {}
    for kind, scene in zip(scenes.kind().tolist(), scenes.words(), strict=True):
        is_digit = isinstance(scene.thing, int)
        what = (scene.thing,) if is_digit else (scene.thing, scene.colour, scene.fill)
        kinds.setdefault(kind, set()).add(what)
    assert all(len(meanings) == 1 for meanings in kinds.values())
    assert len(kinds) == len({next(iter(meanings)) for meanings in kinds.values()})


def test_captions_name_the_content() -> None:
    rng = random.Random(0)
    scene = Scene("star", "red", "striped", True, "white", "dark")
    captions = [caption(rng, scene) for _ in range(300)]
    assert all("star" in text for text in captions)
    red = [any(word in text for word in COLOURS["red"].words) for text in captions]
    assert sum(red) > 250
    assert len(set(captions)) > 150
    digit = Scene(7, "white", "solid", False, "black", "clean")
    assert all("seven" in text or "7" in text for text in (caption(rng, digit) for _ in range(50)))


def test_detailed_captions_tell_more_and_need_no_other_token() -> None:
    scene = Scene("star", "red", "striped", True, "white", "dark")
    words = ("dark", "dim", "white background", "large", "big", "huge")
    told = []
    for is_detailed in (False, True):
        rng = random.Random(0)
        texts = [caption(rng, scene, is_detailed=is_detailed) for _ in range(500)]
        told.append(sum(word in text for text in texts for word in words))
    assert told[1] > 1.8 * told[0]
    known = set(tokenize(vocabulary_text()).unique().tolist())
    scenes = sample_shapes(seeded(), 1000).words() + sample_digits(seeded(), 500).words()
    said = tokenize([caption(rng, scene, is_detailed=True) for scene in scenes]).unique()
    assert known.issuperset(said.tolist())


def test_captions_reach_late_positions() -> None:
    rng = random.Random(0)
    scenes = sample_shapes(seeded(), 4000).words()
    lengths = tokenize([caption(rng, scene) for scene in scenes]).argmax(-1) + 1
    assert (lengths > 24).float().mean() > 0.03
    assert lengths.max() <= 77


def test_vocabulary_text_covers_captions() -> None:
    known = set(tokenize(vocabulary_text()).unique().tolist())
    rng = random.Random(1)
    scenes = sample_shapes(seeded(), 3000).words() + sample_digits(seeded(), 1000).words()
    said = tokenize([caption(rng, scene) for scene in scenes]).unique()
    assert known.issuperset(said.tolist())


def test_description_files_match_the_grammar() -> None:
    digits = json.loads((DESCRIPTIONS / "digits.json").read_text(encoding="utf-8"))
    shapes = json.loads((DESCRIPTIONS / "shapes.json").read_text(encoding="utf-8"))
    assert digits == {name: describe_digit(digit) for digit, name in enumerate(DIGITS)}
    assert shapes == {str(triple): describe_shape(triple) for triple in BENCHMARK}
    sentences = [s for file in (digits, shapes) for each in file.values() for s in each]
    assert {len(set(each)) for file in (digits, shapes) for each in file.values()} == {10}
    assert unknown_words(load_clip("tiny"), sentences) == []


def test_benchmark_images_come_class_by_class() -> None:
    images, labels = benchmark_images(seeded(), 2)
    assert images.shape == (96, 3, 32, 32)
    assert labels.tolist() == [label for label in range(48) for _ in range(2)]


def test_pretraining_cuts_texts_without_changing_them() -> None:
    model = load_clip("tiny")
    tokens = tokenize(["a star.", "two", "a photo of a red dotted heart and more of it"])
    expected = model.encode_text(tokens)
    assert torch.allclose(pretraining.text_features(model, tokens), expected, atol=1e-5)
    assert torch.equal(model.encode_text(tokens), expected)  # the model is unchanged


def test_unknown_tokens_only_shift_a_text() -> None:
    tokens = tokenize(["a star."] * 300 + ["star " * 75] * 10)
    changed = pretraining.with_unknown_tokens(seeded(), tokens, share=0.15, most=16)
    added = (changed == pretraining.UNKNOWN).sum(1)
    assert 20 < (added > 0).sum() < 80
    assert set(added.tolist()) <= set(range(17))
    assert len(set(added.tolist())) > 10
    assert added[300:].sum() == 0  # a full text has no room
    for before, after in zip(tokens.tolist(), changed.tolist(), strict=True):
        words = [token for token in after if token != pretraining.UNKNOWN]
        assert words == before[: len(words)]
        assert after[0] == before[0]


def test_unknown_tokens_are_noise() -> None:
    model = load_clip("tiny")
    tokens = torch.tensor([[1, pretraining.UNKNOWN, 2]] * 50)
    embedded = pretraining.embed(model, tokens)
    assert torch.equal(embedded[:, 0], model.token_embedding.weight[[1] * 50])
    scales = embedded[:, 1].std(-1)
    assert 0.005 < scales.min() < 0.025
    assert 0.045 < scales.max() < 0.08


def test_in_the_pretraining_loss_all_of_a_kind_are_positives() -> None:
    model = load_clip("tiny")
    features = torch.eye(4)[[0, 0, 1, 2]]
    scale = float(model.logit_scale.exp())
    kinds = torch.tensor([7, 7, 8, 9])
    alike = pretraining.contrastive_loss(model, features, features, kinds)
    row = torch.tensor([scale, scale, 0.0, 0.0]).log_softmax(0)
    alone = torch.tensor([scale, 0.0, 0.0, 0.0]).log_softmax(0)
    expected = -(2 * row[:2].mean() + 2 * alone[0]) / 4
    assert float(alike) == pytest.approx(float(expected), abs=1e-5)

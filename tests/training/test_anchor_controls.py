"""The controls of stage 1 and of the vote at test: random anchors, words, the anchors alone."""

from __future__ import annotations

import json

import pytest
import torch

import train
from anchoropt_plugin import AnchorTokens, UserError
from anchoropt_plugin.encoders.clip_models import load_clip, tokenize
from anchoropt_plugin.encoders.text_tower import TextTower
from anchoropt_plugin.training.settings import AnchorOPTConfig
from anchoropt_plugin.training.stage_one import find_anchors

from .test_two_stages import build, command, root

__all__ = ["root"]


def words(root, out, *keys):
    given = [word for key in keys for word in ("TRAINER.ANCHOROPT." + key).split("=")]
    return command(root, out, keys=["DATASET.NUM_SHOTS", "2", "OPTIM.MAX_EPOCH", "1", *given])


def anchors_of(root, out, *keys):
    assert train.main(words(root, out, *keys)) == 0
    return AnchorTokens.load(out).values


def test_words_stand_in_for_learned_anchors(root, tmp_path):
    clip = load_clip("tiny")
    row = clip.token_embedding(tokenize(["photo picture"]))[0, 1:3]
    found = anchors_of(root, tmp_path / "out", "ANCHOR=photo_picture", "ANCHOR_LEN=2")
    assert torch.equal(found, row.detach())
    assert "Stage 1: skipped" in (tmp_path / "out/log.txt").read_text()


@pytest.mark.parametrize(
    ("text", "lr", "says"),
    [
        ("a cat " * 40, 0.002, r"has \d+ tokens, but CLIP reads at most 77; [^(]*$"),
        (
            "A cat.",
            1e30,
            r"the loss of epoch \d is (nan|inf): .* \(TRAINER\.ANCHOROPT\.ANCHOR_LR, ",
        ),
    ],
)
def test_only_a_loss_that_is_not_finite_names_the_keys_of_the_loss(tmp_path, text, lr, says):
    (tmp_path / "texts.json").write_text(json.dumps({"cat": [text], "dog": ["A dog."]}))
    settings = AnchorOPTConfig(
        descriptions=str(tmp_path / "texts.json"), anchor_lr=lr, anchor_epochs=9
    )
    tower = TextTower(load_clip("tiny"))
    with pytest.raises(UserError, match=says):
        find_anchors(settings, tower, ["cat", "dog"], 1, lambda: [], print, print)


def test_words_of_another_length(root, tmp_path, capsys):
    assert train.main(words(root, tmp_path, "ANCHOR=photo picture")) == 2
    assert "is 2 tokens: give the length 2" in capsys.readouterr().err


def test_random_anchors_are_drawn_by_the_seed(root, tmp_path):
    first = anchors_of(root, tmp_path / "1", "ANCHOR=random")
    again = anchors_of(root, tmp_path / "2", "ANCHOR=random")
    learned = anchors_of(root, tmp_path / "3", "ANCHOR_EPOCHS=2")
    assert torch.equal(first, again) and not torch.equal(first, learned)
    many = AnchorTokens.random(TextTower(load_clip("tiny")), 1000).values
    assert many.shape == (1000, 128) and many.std().item() == pytest.approx(0.02, rel=0.02)


def test_anchors_alone_at_test(root, tmp_path):
    keys = ["TRAINER.ANCHOROPT.ENSEMBLE", "anchors", "TRAINER.ANCHOROPT.ANCHOR", "random"]
    trainer = build(root, tmp_path, keys=keys)
    trainer.anchoropt_stage_one()
    trainer.set_model_mode("eval")
    images, _ = trainer.parse_batch_test(next(iter(trainer.test_loader)))
    with torch.no_grad():
        logits = trainer.model_inference(images)
        features = torch.nn.functional.normalize(trainer.model.image_encoder(images), dim=-1)
        texts = trainer.anchoropt.prompts.encode(trainer.anchoropt.position.anchors)
        expected = trainer.model.logit_scale.exp() * features @ texts.t()
    torch.testing.assert_close(logits, expected)


def test_learned_anchors_from_a_file_exclude_others():
    with pytest.raises(UserError, match="excludes ANCHOR random"):
        AnchorOPTConfig(anchor_weights="anchors", anchor="random")
    with pytest.raises(UserError, match="ANCHOR is ' '"):
        AnchorOPTConfig(anchor=" ")

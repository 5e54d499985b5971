"""Stage 1 against plain computations, and anchors on disk."""

from __future__ import annotations

import math
import pickle
import re

import pytest
import torch
from clip.model import convert_weights
from torch.nn import functional as F

from anchoropt_plugin import AnchorPositionModule, AnchorTokens, UserError, load_predictor
from anchoropt_plugin.encoders.clip_models import tokenize
from anchoropt_plugin.encoders.text_tower import TextTower
from anchoropt_plugin.method.anchor_learning import StageOne
from anchoropt_plugin.method.anchor_prompts import AnchorPrompts
from anchoropt_plugin.method.descriptions import from_templates
from anchoropt_plugin.training import anchor_cache
from anchoropt_plugin.training.anchor_cache import content_key
from tests.conftest import random_clip

NAMES = ["cat", "golden_retriever", "red panda"]
TEXTS = [["a small cat.", "a cat on a roof."], ["a dog."], ["a red bear.", "a panda.", "red fur."]]


def plain_features(clip, values):
    """Features of ``[A] of {class}.`` through CLIP's own 77 tokens, normalised."""
    words = " ".join(["X"] * len(values))
    tokens = tokenize([f"{words} of {name.replace('_', ' ')}." for name in NAMES])
    x = clip.token_embedding(tokens)
    x = torch.cat([x[:, :1], values.expand(3, -1, -1), x[:, 1 + len(values) :]], 1)
    x = (x + clip.positional_embedding).permute(1, 0, 2)
    x = clip.ln_final(clip.transformer(x).permute(1, 0, 2))
    return F.normalize(x[torch.arange(3), tokens.argmax(-1)] @ clip.text_projection, dim=-1)


def plain_loss(clip, values, weight):
    """The mean over classes, descriptions and features, term by term."""
    features, total = plain_features(clip, values), 0.0
    for feature, sentences in zip(features, TEXTS, strict=True):
        targets = F.normalize(clip.encode_text(tokenize(sentences)), dim=-1)
        total = total + (feature - targets).square().mean()
    return weight * total / 3


@pytest.mark.parametrize("length", [1, 3])
def test_anchor_prompts_equal_the_plain_branch(clip, length):
    values = torch.randn(length, 64) * 0.02
    features = AnchorPrompts(TextTower(clip), NAMES, length).encode(values)
    torch.testing.assert_close(features, plain_features(clip, values), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [1, 2])
def test_learning_is_sgd_on_the_loss_written_out(clip, length):
    settings = StageOne(length=length, epochs=4, steps=2, lr=0.5, mse_weight=100.0)
    learned = AnchorTokens.learn(TextTower(clip), NAMES, TEXTS, settings)

    generator = torch.Generator().manual_seed(0)
    values = (0.02 * torch.randn(length, 64, generator=generator)).requires_grad_()
    optimizer = torch.optim.SGD([values], lr=0.5, momentum=0.9, weight_decay=5e-4)
    losses = []
    cosine = [0.5 * 0.5 * (1 + math.cos(math.pi * lag / 4)) for lag in (0, 1, 2)]
    for rate in (1e-5, *cosine):
        optimizer.param_groups[0]["lr"] = rate
        steps = []
        for _ in range(2):
            loss = plain_loss(clip, values, 100.0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps.append(loss.item())
        losses.append(sum(steps) / 2)
    assert learned.losses == pytest.approx(losses, rel=1e-4)
    torch.testing.assert_close(learned.values, values.detach(), rtol=1e-3, atol=1e-5)


def test_seeds_share_the_start_and_the_global_random_state_is_left_alone(clip):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = AnchorTokens.learn(TextTower(clip), NAMES, TEXTS, StageOne(epochs=2))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second = AnchorTokens.learn(TextTower(clip), NAMES, TEXTS, StageOne(epochs=2))
    assert torch.equal(first.values, second.values)


def test_half_precision_stays_finite_and_near_float32_on_the_published_weight():
    clip = random_clip()
    settings = StageOne(epochs=20, steps=3, mse_weight=1000.0)
    full = AnchorTokens.learn(TextTower(clip), NAMES, TEXTS, settings)
    convert_weights(clip)
    half = AnchorTokens.learn(TextTower(clip), NAMES, TEXTS, settings)
    assert all(map(math.isfinite, half.losses))
    assert half.losses[-1] == pytest.approx(full.losses[-1], rel=0.02)
    assert half.losses[-1] < half.losses[0]


def test_a_cross_entropy_on_images_is_added_where_asked_for(clip):
    images, labels = F.normalize(torch.randn(6, 32), dim=-1), torch.tensor([0, 1, 2, 0, 1, 2])
    settings = StageOne(epochs=1, steps=1, mse_weight=1.0, ce_weight=2.0)
    batches = [(images, labels)]
    learned = AnchorTokens.learn(TextTower(clip), NAMES, TEXTS, settings, images=lambda: batches)
    start = 0.02 * torch.randn(1, 64, generator=torch.Generator().manual_seed(0))
    logits = clip.logit_scale.exp() * images @ plain_features(clip, start).t()
    expected = plain_loss(clip, start, 1.0) + 2.0 * F.cross_entropy(logits, labels)
    assert learned.losses[0] == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("texts", [TEXTS[:1], [*TEXTS[:2], []]])
def test_every_class_needs_descriptions(clip, texts):
    with pytest.raises(ValueError, match="3 classes"):
        AnchorTokens.learn(TextTower(clip), NAMES, texts)


@pytest.mark.parametrize("texts", [["a photo of a cat."] * 3, "abc", dict.fromkeys(NAMES, "a.")])
def test_descriptions_without_a_list_per_class_are_refused(clip, texts):
    """Stage 1 would learn from single letters, without a warning."""
    with pytest.raises(ValueError, match=r"one list of sentences per class.*; got a str"):
        AnchorTokens.learn(TextTower(clip), NAMES, texts)


def test_a_name_in_place_of_names_is_refused(clip):
    with pytest.raises(ValueError, match="class_names must be a list of names; got the str 'cat'"):
        AnchorTokens.learn(clip, "cat", [["a."], ["b."], ["c."]])
    with pytest.raises(UserError, match="the class names are the str 'cat': give a list"):
        load_predictor("nowhere", classes="cat")
    with pytest.raises(UserError, match=r"'cat, dog' is one class name alone, .*: give several"):
        load_predictor("nowhere", classes=["cat, dog"])


def test_no_names_at_all_are_refused(clip):
    for call in (
        lambda: AnchorTokens(torch.zeros(1, 64)).class_features(clip, []),
        lambda: AnchorTokens.learn(clip, [], []),
    ):
        with pytest.raises(UserError, match="class_names is empty"):
            call()


@pytest.mark.parametrize("names", [set(NAMES), dict.fromkeys(NAMES), [*NAMES[:2], 3]])
def test_names_without_an_order_are_refused(clip, names):
    """A set would pair names with the descriptions of other classes."""
    with pytest.raises(ValueError, match="class_names must be a list of names; got the "):
        AnchorTokens.learn(clip, names, TEXTS, StageOne(epochs=1))
    for texts in ([*TEXTS[:2], {"a.", "b."}], {0: "a.", 1: "b."}.items(), [*TEXTS[:2], [3]]):
        with pytest.raises(ValueError, match="must be one list of sentences per class"):
            AnchorTokens.learn(clip, NAMES, texts, StageOne(epochs=1))


def test_texts_without_a_word_and_templates_are_refused(clip):
    with pytest.raises(ValueError, match=r"class_names\[1\] is '_': give a name"):
        AnchorTokens(torch.zeros(1, 64)).class_features(clip, ["cat", "_"])
    signs = {"{}": "a {}.", "{name}": "a {name}.", "[CLASS]": "a [CLASS].", "%s": "a %s."}
    says = {text: f"write the name of the class in place of {sign}" for sign, text in signs.items()}
    for text, what in {"": "it is empty", "  ": "it is empty", **says}.items():
        texts = dict(zip(NAMES, [*TEXTS[:2], ["a panda.", text]], strict=True))
        wrong = re.escape(f"a description of 'red panda' is '{text}': {what}")
        with pytest.raises(ValueError, match=wrong):
            AnchorTokens.learn(clip, NAMES, texts)


def test_a_trained_clip_gets_no_gradients_of_stage_1():
    clip = random_clip().requires_grad_(True)
    AnchorTokens.learn(clip, NAMES, TEXTS, StageOne(epochs=1))
    assert all(parameter.grad is None for parameter in clip.parameters())


def test_numbers_in_place_of_names_in_a_dict_are_refused(clip):
    with pytest.raises(UserError, match=r"the dict of descriptions has the key 0: give class"):
        AnchorTokens.learn(clip, NAMES, dict(enumerate(TEXTS)))


def test_a_name_may_have_braces(clip):
    sentences = from_templates(["one {} x", "two"], limit=2)
    AnchorTokens.learn(clip, ["one {} x", "two"], sentences, StageOne(epochs=1))


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_anchors_are_learned_where_gradients_are_off(clip, off):
    def learn():
        features = torch.ones(len(NAMES), clip.text_projection.shape[1])
        batches = [(features, torch.arange(len(NAMES)))]
        settings = StageOne(epochs=2, ce_weight=1.0)
        return AnchorTokens.learn(clip, NAMES, TEXTS, settings, images=lambda: batches).values

    with off():
        values = learn()
    assert torch.equal(values, learn())


def test_a_clip_loaded_in_inference_mode_is_refused():
    with torch.inference_mode():
        clip = random_clip()
    with pytest.raises(UserError, match="the CLIP was loaded in "):
        AnchorTokens.learn(clip, NAMES, TEXTS, StageOne(epochs=1))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"mse_weight": 0.0}, r"mse_weight is 0\.0: give a positive number"),
        ({"lr": math.nan, "ce_weight": -1.0}, r"lr is nan: .*; ce_weight is -1\.0: give 0 or"),
        ({"epochs": 2.5}, r"epochs is 2\.5: give an integer from 1"),
        ({"epochs": 0, "length": 0, "steps": -1}, r"length is 0: .*epochs is 0: .*steps is -1: "),
    ],
)
def test_numbers_that_stage_1_cannot_run_with_are_refused(settings, says):
    with pytest.raises(ValueError, match=f"^StageOne: {says}"):
        StageOne(**settings)


def test_a_text_encoder_in_place_of_a_clip_is_refused(clip):
    encoder = torch.nn.Module()
    encoder.transformer, encoder.ln_final = clip.transformer, clip.ln_final
    encoder.positional_embedding = clip.positional_embedding
    encoder.text_projection = clip.text_projection
    with pytest.raises(UserError, match="Module has no token_embedding, logit_scale: give the wh"):
        AnchorTokens.learn(encoder, NAMES, TEXTS)


def test_a_clip_whose_text_tower_was_changed_is_refused(clip, monkeypatch):
    block = clip.transformer.resblocks[1]
    hook = block.mlp.register_forward_hook(lambda module, args, output: 3 * output)
    with pytest.raises(UserError, match=r"CLIP has another text tower .* differ by"):
        AnchorTokens.learn(clip, NAMES, TEXTS)
    with pytest.raises(UserError, match="without adapters and hooks"):
        AnchorTokens(torch.zeros(1, 64)).class_features(clip, NAMES)
    hook.remove()
    # As of a repository with a CLIP of its own.
    monkeypatch.setattr(clip, "encode_text", lambda prompts, tokens, deep: None)
    assert AnchorTokens(torch.zeros(1, 64)).class_features(clip, NAMES).shape == (3, 32)


def test_autocast_changes_no_anchors_and_no_features_of_them(clip):
    plain = AnchorTokens.learn(clip, NAMES, TEXTS, StageOne(epochs=3))
    features = plain.class_features(clip, NAMES)
    with torch.autocast("cpu", torch.bfloat16):
        learned = AnchorTokens.learn(clip, NAMES, TEXTS, StageOne(epochs=3))
        assert torch.equal(plain.class_features(clip, NAMES), features)
    assert torch.equal(learned.values, plain.values) and learned.losses == plain.losses


def test_a_dict_of_descriptions_and_a_plain_clip_give_the_same_anchors(clip):
    listed = AnchorTokens.learn(TextTower(clip), NAMES, TEXTS, StageOne(epochs=2))
    by_name = {"Red_Panda": TEXTS[2], "cat": TEXTS[0], "Golden Retriever": TEXTS[1], "dog": ["x"]}
    learned = AnchorTokens.learn(clip, NAMES, by_name, StageOne(epochs=2))
    assert torch.equal(learned.values, listed.values) and learned.losses == listed.losses
    del by_name["cat"]
    with pytest.raises(
        UserError, match=r"the dict of descriptions has no .* 1 of 3 classes \(cat\)"
    ):
        AnchorTokens.learn(clip, NAMES, by_name)
    words = AnchorTokens.of_words(clip, "photo", 1).values
    assert torch.equal(words, AnchorTokens.of_words(TextTower(clip), "photo", 1).values)
    assert AnchorTokens.random(clip, 2).values.shape == (2, 64)


def test_a_loss_that_is_not_finite_is_told(clip):
    with pytest.raises(UserError, match=r"epoch \d+ is (nan|inf)"):
        AnchorTokens.learn(TextTower(clip), NAMES, TEXTS, StageOne(epochs=9, lr=1e30))


# ---------------------------------------------------------------------- on disk
def test_save_and_load(tmp_path):
    kept = AnchorTokens(torch.randn(2, 8), [3.0, 2.0], "key")
    kept.save(tmp_path / "a.pth.tar")
    loaded = AnchorTokens.load(tmp_path / "a.pth.tar")
    assert torch.equal(loaded.values, kept.values)
    assert (loaded.losses, loaded.key) == ([3.0, 2.0], "key")


class _Scheduler:
    """Stands for the scheduler object that is pickled in published files."""

    def __init__(self, flag):
        self.flag = flag

    def __reduce__(self):
        return open, (self.flag, "w")


def test_published_files_are_read_without_running_their_code(tmp_path):
    flag = tmp_path / "code ran"
    folder = tmp_path / "anchor_prompt_learner"
    folder.mkdir()
    tokens = torch.randn(1, 512).half()
    state = {
        "anchor_ctx_1": tokens,
        "token_prefix": torch.zeros(5, 1, 512).half(),
        "token_of": torch.zeros(5, 1, 512).half(),
        "token_suffix": torch.zeros(5, 74, 512).half(),
    }
    content = {"state_dict": state, "epoch": 100, "optimizer": {}, "val_result": None}
    torch.save({**content, "scheduler": _Scheduler(str(flag))}, folder / "model.pth.tar")
    flag.unlink(missing_ok=True)
    for path in (tmp_path, folder / "model.pth.tar"):
        loaded = AnchorTokens.load(path).values
        assert loaded.dtype == torch.float32 and torch.equal(loaded, tokens.float())
    assert not flag.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {"ctx": torch.zeros(4, 8)}}, "holds no anchor tokens"),
        ({"epoch": 3}, "holds no anchor tokens"),
        ({"state_dict": {"anchor_ctx_1": torch.zeros(8)}}, "holds no anchor tokens"),
        ({"state_dict": {"anchor_ctx_1": torch.full((1, 8), math.nan)}}, "not finite"),
    ],
)
def test_files_that_hold_no_anchors_are_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "a.pth.tar")
    with pytest.raises(UserError, match=message):
        AnchorTokens.load(tmp_path / "a.pth.tar")


def test_a_missing_or_truncated_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"a\.pth\.tar"):
        AnchorTokens.load(tmp_path / "a.pth.tar")
    AnchorTokens(torch.randn(2, 8)).save(tmp_path / "a.pth.tar")
    whole = (tmp_path / "a.pth.tar").read_bytes()
    (tmp_path / "a.pth.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"a\.pth\.tar"):
        AnchorTokens.load(tmp_path / "a.pth.tar")


# ---------------------------------------------------------------------- shared under a key
def test_the_key_depends_on_all_that_the_anchors_depend_on(clip, monkeypatch):
    base = (clip, NAMES, TEXTS, StageOne())
    other_weights = random_clip(seed=1)
    changes = [
        (other_weights, NAMES, TEXTS, StageOne()),
        (clip, ["cat", "dog", "red panda"], TEXTS, StageOne()),
        (clip, NAMES, [*TEXTS[:2], ["a panda."]], StageOne()),
        (clip, NAMES, TEXTS, StageOne(lr=0.01)),
    ]
    keys = [content_key(TextTower(c), *rest) for c, *rest in [base, *changes]]
    assert len(set(keys)) == len(keys)
    assert keys[0] == content_key(TextTower(random_clip()), NAMES, TEXTS, StageOne())
    # What these change is the last bit, which is enough for another image to be right.
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 77)
        keys.append(content_key(TextTower(clip), *base[1:]))
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "77.0")
        keys.append(content_key(TextTower(clip), *base[1:]))
    assert len(set(keys)) == len(keys)


def test_kept_anchors_are_recalled_and_damaged_ones_are_not(tmp_path, caplog):
    kept = AnchorTokens(torch.randn(1, 8), [1.0], "abc")
    anchor_cache.put(kept, tmp_path / "new" / "folder")
    recalled = anchor_cache.get(tmp_path / "new" / "folder", "abc", (1, 8))
    assert torch.equal(recalled.values, kept.values)
    assert anchor_cache.get(tmp_path, "abc", (1, 8)) is None
    (tmp_path / "abc.pth.tar").write_bytes(pickle.dumps("nothing of the kind"))
    assert anchor_cache.get(tmp_path, "abc", (1, 8)) is None
    kept.save(tmp_path / "abc.pth.tar")
    assert anchor_cache.get(tmp_path, "abc", (3, 8)) is None
    kept.save(tmp_path / "abd.pth.tar")
    assert anchor_cache.get(tmp_path, "abd", (1, 8)) is None
    assert "learning the anchors again" in caplog.text


def test_a_folder_that_cannot_be_written_is_said_and_not_fatal(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    anchor_cache.put(AnchorTokens(torch.zeros(1, 8), [], "abc"), tmp_path / "file" / "folder")
    assert "cannot cache the anchors" in caplog.text


def test_the_cache_folder(monkeypatch, tmp_path):
    assert anchor_cache.cache_folder(str(tmp_path)) == tmp_path
    monkeypatch.setenv("ANCHOROPT_CACHE", "/somewhere")
    assert str(anchor_cache.cache_folder()) == "/somewhere"
    monkeypatch.delenv("ANCHOROPT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert str(anchor_cache.cache_folder()) == "/cache/anchoropt_plugin/anchors"


def test_anchors_are_printed_in_one_short_line():
    assert str(AnchorTokens(torch.zeros(2, 512))) == "AnchorTokens(2 × 512)"
    learned = AnchorTokens(torch.zeros(1, 8), [0.75, 0.5, 0.123456])
    assert repr(learned) == "AnchorTokens(1 × 8, 3 epochs, loss 0.75 → 0.1235)"
    module = AnchorPositionModule(4, learned.values)
    shown = "AnchorPositionModule(n_ctx=4, n_anchors=1, relaxation='sinkhorn')"
    assert repr(module) == shown

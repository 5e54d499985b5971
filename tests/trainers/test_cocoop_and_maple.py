"""CoCoOp and MaPLe in their plain form, against a plain computation."""

from __future__ import annotations

import re
import shutil

import pytest
import torch
from clip.model import CLIP
from torch import nn

import train
from anchoropt_plugin import UserError, accelerate
from anchoropt_plugin.config.merge import merge_list
from anchoropt_plugin.encoders.clip_models import tokenize
from dassl.config import get_cfg_default
from trainers import cocoop, maple
from trainers.prompted_clip import TextEncoder

from .runs import ROOT, build, command, register_bare

NAMES = ["cat", "red_dog", "long haired horse"]
DIM, WIDTH, FEATURES, BLOCKS = 64, 128, 32, 3
"""Widths of the text tower, the image tower and the features; blocks of each tower."""
HOSTS = ["CoCoOp", "MaPLe"]
FOLDERS = {"CoCoOp": "prompt_learner", "MaPLe": "MultiModalPromptLearner"}


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    model = CLIP(FEATURES, 32, BLOCKS, WIDTH, 8, 77, 49408, DIM, 4, BLOCKS)
    return model.float().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def images():
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def settings(*keys):
    cfg = get_cfg_default()
    train.extend_cfg(cfg)
    merge_list(cfg, ["TRAINER.COCOOP.PREC", "fp32", "TRAINER.MAPLE.PREC", "fp32", *keys])
    return cfg


def conditional(clip, *keys):
    torch.manual_seed(0)
    learner = cocoop.PromptLearner(settings("TRAINER.COCOOP.N_CTX", "3", *keys), NAMES, clip)
    return cocoop.ConditionalCLIP(learner, clip)


def multi_modal(clip, *keys):
    torch.manual_seed(0)
    cfg = settings("TRAINER.MAPLE.PROMPT_DEPTH", "3", *keys)
    learner = maple.MultiModalPromptLearner(cfg, NAMES, clip)
    with torch.no_grad():  # all projections start equal: make them different
        for parameter in learner.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return maple.MultiModalCLIP(learner, clip)


def shapes(module):
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


# ---------------------------------------------------------------------- the learners
def test_cocoop_has_the_public_parameters(clip):
    assert shapes(conditional(clip).prompt_learner) == {
        "ctx": (3, DIM),
        "meta_net.linear1.weight": (FEATURES // 16, FEATURES),
        "meta_net.linear1.bias": (FEATURES // 16,),
        "meta_net.linear2.weight": (DIM, FEATURES // 16),
        "meta_net.linear2.bias": (DIM,),
        "token_prefix": (3, 1, DIM),
        "token_suffix": (3, 73, DIM),
    }


def test_maple_has_the_public_parameters(clip):
    expected = {
        "ctx": (2, DIM),
        "proj.weight": (WIDTH, DIM),
        "proj.bias": (WIDTH,),
        "token_prefix": (3, 1, DIM),
        "token_suffix": (3, 74, DIM),
    }
    for i in range(2):
        expected |= {
            f"compound_prompts_text.{i}": (2, DIM),
            f"compound_prompt_projections.{i}.weight": (WIDTH, DIM),
            f"compound_prompt_projections.{i}.bias": (WIDTH,),
        }
    assert shapes(multi_modal(clip).prompt_learner) == expected


def test_a_context_starts_from_words(clip):
    embedding = clip.token_embedding(tokenize(["a photo of a"]))[0]
    words = ["TRAINER.COCOOP.CTX_INIT", "a_photo of a"]
    assert torch.equal(conditional(clip, *words).prompt_learner.ctx, embedding[1:5])
    cfg = settings("TRAINER.MAPLE.PROMPT_DEPTH", "1")
    learner = maple.MultiModalPromptLearner(cfg, NAMES, clip)
    assert torch.equal(learner.ctx, embedding[1:3])
    # Words beyond N_CTX stay in the prompt and are not learned.
    assert torch.equal(learner.token_suffix[:, :2], embedding[None, 3:5].expand(3, -1, -1))


def test_prompts_of_a_batch_are_those_of_its_images(clip):
    learner = conditional(clip).prompt_learner
    features = torch.randn(4, FEATURES)
    prompts = learner(features)
    assert prompts.shape == (4, 3, 77, DIM)
    for b, c in ((0, 2), (3, 1)):
        context = learner.ctx + learner.meta_net(features[b])
        parts = [learner.token_prefix[c], context, learner.token_suffix[c]]
        torch.testing.assert_close(prompts[b, c], torch.cat(parts))


# ---------------------------------------------------------------------- the models
def text_feature(clip, prompt, eot, deep=()):
    """Encode one prompt (77, d), block by block."""
    x = prompt + clip.positional_embedding
    for i, block in enumerate(clip.transformer.resblocks):
        if 1 <= i <= len(deep):
            x = torch.cat([x[:1], deep[i - 1], x[1 + len(deep[i - 1]) :]])
        x = block(x[:, None])[:, 0]
    return clip.ln_final(x[eot]) @ clip.text_projection


def image_feature(clip, image, shared, deep):
    """Encode one image (3, R, R), block by block."""
    visual = clip.visual
    patches = visual.conv1(image[None])[0].flatten(1).t()
    x = torch.cat([visual.class_embedding[None], patches]) + visual.positional_embedding
    n = len(x)
    x = visual.ln_pre(torch.cat([x, shared]))
    for i, block in enumerate(visual.transformer.resblocks):
        if 1 <= i <= len(deep):
            x = torch.cat([x[:n], deep[i - 1]])
        x = block(x[:, None])[:, 0]
    return visual.ln_post(x[0]) @ visual.proj


def cosine_logits(clip, image_features, text_features):
    cosine = nn.functional.cosine_similarity(image_features, text_features, dim=-1)
    return clip.logit_scale.exp() * cosine


def eots(words):
    return tokenize([f"{words} {name.replace('_', ' ')}." for name in NAMES]).argmax(-1)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("batch", [1, 4])
def test_cocoop_encodes_other_prompts_for_each_image(clip, images, batch, fast):
    model = conditional(clip)
    if fast:
        accelerate(model)
    learner, eot = model.prompt_learner, eots("X X X")
    expected = []
    for image in images[:batch]:
        feature = clip.encode_image(image[None])[0]
        context = learner.ctx + learner.meta_net(feature / feature.norm())
        texts = [
            text_feature(
                clip, torch.cat([learner.token_prefix[c], context, learner.token_suffix[c]]), eot[c]
            )
            for c in range(len(NAMES))
        ]
        expected.append(cosine_logits(clip, feature, torch.stack(texts)))
    torch.testing.assert_close(model(images[:batch]), torch.stack(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_maple_overwrites_prompts_block_by_block_in_both_towers(clip, images, depth, fast):
    model = multi_modal(clip, "TRAINER.MAPLE.PROMPT_DEPTH", str(depth))
    if fast:
        accelerate(model)
    learner, eot = model.prompt_learner, eots("a photo of a")
    deep = list(learner.compound_prompts_text)
    assert len(deep) == depth - 1
    projections = learner.compound_prompt_projections
    deep_visual = [p @ m.weight.t() + m.bias for p, m in zip(deep, projections, strict=True)]
    shared = learner.ctx @ learner.proj.weight.t() + learner.proj.bias
    texts = [
        text_feature(
            clip,
            torch.cat([learner.token_prefix[c], learner.ctx, learner.token_suffix[c]]),
            e,
            deep,
        )
        for c, e in enumerate(eot)
    ]
    features = [image_feature(clip, image, shared, deep_visual) for image in images]
    expected = cosine_logits(clip, torch.stack(features)[:, None], torch.stack(texts))
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)


def test_without_prompts_the_encoders_are_plain_clip(clip, images):
    encoder = maple.ImageEncoder(clip.visual)
    for nothing in (None, torch.zeros(0, WIDTH)):
        assert torch.equal(encoder(images, nothing, []), clip.encode_image(images))
    tokens = tokenize(["a cat.", "a photo of a red dog."])
    embedded = clip.token_embedding(tokens)
    assert torch.equal(TextEncoder(clip)(embedded, tokens, []), clip.encode_text(tokens))
    twice = TextEncoder(clip)(torch.stack([embedded, embedded]), tokens)
    torch.testing.assert_close(twice[1], clip.encode_text(tokens))


def test_a_test_batch_with_many_prompts_is_split(clip, images, monkeypatch):
    model = conditional(clip).eval()
    whole, sizes = model(images), []
    monkeypatch.setattr(cocoop, "PROMPTS_AT_ONCE", 7)  # two images of three classes
    model.prompt_learner.register_forward_hook(lambda _, args, out: sizes.append(len(out)))
    torch.testing.assert_close(model(images), whole)
    model.train()(images)
    assert sizes == [2, 2, 4]


# ---------------------------------------------------------------------- through train.py
@pytest.fixture(scope="module", params=HOSTS)
def trained(request, root, tmp_path_factory):
    """Return a host, and the output folder of a short run on the base classes."""
    out = tmp_path_factory.mktemp("run")
    assert train.main(command(root, out, request.param)) == 0
    return request.param, out


def checkpoint(trained):
    host, out = trained
    return out / FOLDERS[host] / "model.pth.tar-2"


def weights(trained):
    return torch.load(checkpoint(trained), weights_only=True)["state_dict"]


def test_a_run_saves_its_parameters_under_their_public_names(trained, root, tmp_path):
    host, out = trained
    assert "* accuracy: " in (out / "log.txt").read_text()
    learner = build(root, tmp_path, host).model.prompt_learner
    prefix = "prompt_learner." if host == "MaPLe" else ""
    assert weights(trained).keys() == {prefix + name for name in learner.state_dict()}


def test_the_decorator_leaves_the_host_s_numbers(trained, root, tmp_path):
    host, _ = trained
    register_bare(host.lower())
    assert train.main(command(root, tmp_path, f"{host}_Bare")) == 0
    ours, theirs = weights(trained), weights((host, tmp_path))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("host", HOSTS)
def test_with_anchoropt_the_fast_branch_trains_to_the_same_losses(root, tmp_path, host):
    losses = []
    for fast in ("True", "False"):
        out, keys = tmp_path / fast, ["TRAINER.ANCHOROPT.FAST_TEXT", fast, "TRAIN.PRINT_FREQ", "1"]
        assert train.main(command(root, out, f"{host}_AnchorOPT", keys=keys)) == 0
        log = (out / "log.txt").read_text()
        losses.append([float(loss) for loss in re.findall(r"loss \S+ \((\S+)\) acc", log)])
    assert losses[0] and losses[0] == pytest.approx(losses[1], rel=1e-3)
    flags = ["--eval-only", "--model-dir", str(out), "--load-epoch", "2"]
    assert train.main(command(root, tmp_path / "new", f"{host}_AnchorOPT", "new", flags)) == 0


def test_a_vanilla_checkpoint_gets_anchors(trained, root, tmp_path):
    host, out = trained
    flags = ["--eval-only", "--model-dir", str(out), "--load-epoch", "2"]
    assert train.main(command(root, tmp_path, f"{host}_AnchorOPT", "new", flags)) == 0
    assert "Stage 1: " in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("fast", ["True", "False"])
def test_every_parameter_of_the_learner_learns_and_no_other(root, tmp_path, host, fast):
    trainer = build(root, tmp_path, host, keys=["TRAINER.ANCHOROPT.FAST_TEXT", fast])
    trainer.set_model_mode("train")
    trainer.num_batches, trainer.batch_idx = 2, 0
    trainer.forward_backward(next(iter(trainer.train_loader_x)))
    for name, parameter in trainer.model.named_parameters():
        if name.startswith("prompt_learner."):
            assert parameter.requires_grad and parameter.grad.any(), name
        else:
            assert not parameter.requires_grad and parameter.grad is None, name
    groups = trainer.optim.param_groups
    ours = {id(parameter) for parameter in trainer.model.prompt_learner.parameters()}
    assert {id(parameter) for group in groups for parameter in group["params"]} == ours


def test_a_checkpoint_loads_for_other_classes(trained, root, tmp_path, capsys):
    host, out = trained
    flags = ["--eval-only", "--model-dir", str(out), "--load-epoch", "2"]
    assert train.main(command(root, tmp_path, host, "all", flags)) == 0
    assert re.search(r"# classes +10", capsys.readouterr().out)


def test_init_weights_leave_the_class_names(trained, root, tmp_path):
    host, _ = trained
    keys = ["MODEL.INIT_WEIGHTS", str(checkpoint(trained))]
    started = build(root, tmp_path / "a", host, "new", keys).model.prompt_learner
    fresh = build(root, tmp_path / "b", host, "new").model.prompt_learner
    (ctx,) = (value for key, value in weights(trained).items() if key.endswith("ctx"))
    assert torch.equal(started.ctx, ctx) and not torch.equal(fresh.ctx, ctx)
    assert torch.equal(started.token_suffix, fresh.token_suffix)


def test_a_public_checkpoint_of_maple_holds_the_whole_model(root, tmp_path):
    trainer = build(root, tmp_path, "MaPLe", "all")
    public = {key: value + 1 for key, value in trainer.model.state_dict().items()}
    for key in ("token_prefix", "token_suffix"):
        public[f"prompt_learner.{key}"] = torch.zeros(3, 1, 128)
    (tmp_path / "MultiModalPromptLearner").mkdir()
    file = tmp_path / "MultiModalPromptLearner/model.pth.tar-5"
    torch.save({"state_dict": public, "epoch": 5}, file)
    trainer.load_model(str(tmp_path), epoch=5)
    state = trainer.model.state_dict()
    assert torch.equal(state["logit_scale"], public["logit_scale"] - 1)
    trained = dict(trainer.model.prompt_learner.named_parameters())
    assert all(torch.equal(trained[key], public[f"prompt_learner.{key}"]) for key in trained)


# ---------------------------------------------------------------------- errors, one line each
def test_a_checkpoint_of_another_context_length(trained, root, tmp_path, capsys):
    host, out = trained
    flags = ["--eval-only", "--model-dir", str(out), "--load-epoch", "2"]
    keys = [f"TRAINER.{host.upper()}.N_CTX", "3"]
    assert train.main(command(root, tmp_path, host, flags=flags, keys=keys)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "another context length" in line and "model.pth.tar-2" in line


@pytest.mark.parametrize("trained", ["MaPLe"], indirect=True)
@pytest.mark.parametrize("depth", ["1", "2", "4"])
def test_a_checkpoint_of_another_depth(trained, root, tmp_path, capsys, depth):
    host, out = trained
    bare = shutil.copytree(out, tmp_path / "bare", ignore=shutil.ignore_patterns("config.yaml"))
    keys = ["TRAINER.MAPLE.PROMPT_DEPTH", depth]
    for folder, says in ((out, f"PROMPT_DEPTH was 3, now {depth}"), (bare, "prompt depth")):
        flags = ["--eval-only", "--model-dir", str(folder), "--load-epoch", "2"]
        assert train.main(command(root, tmp_path / "out", host, flags=flags, keys=keys)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert says in line
    assert "prompt_learner.compound_prompt" in line


@pytest.mark.parametrize(
    ("host", "keys", "message"),
    [
        ("CoCoOp", ["TRAINER.COCOOP.N_CTX", "0"], "TRAINER.COCOOP.N_CTX is 0"),
        ("CoCoOp", ["TRAINER.COCOOP.PREC", "fp8"], "one of fp16, fp32, amp"),
        ("MaPLe", ["TRAINER.MAPLE.PROMPT_DEPTH", "0"], "PROMPT_DEPTH is 0: tiny takes 1 to 4"),
        ("MaPLe", ["TRAINER.MAPLE.PROMPT_DEPTH", "5"], "PROMPT_DEPTH is 5: tiny takes 1 to 4"),
        ("MaPLe", ["TRAINER.MAPLE.CTX_INIT", "photo"], "has 1 token(s), fewer than N_CTX 2"),
    ],
)
def test_mistakes_get_one_line(root, tmp_path, capsys, host, keys, message):
    assert train.main(command(root, tmp_path, host, keys=keys)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_maple_needs_an_image_transformer():
    resnet = CLIP(FEATURES, 32, (1, 1, 1, 1), 2, None, 77, 49408, DIM, 4, 2)
    with pytest.raises(UserError, match="RN50 has none: give a ViT"):
        maple.MultiModalPromptLearner(settings("MODEL.BACKBONE.NAME", "RN50"), NAMES, resnet)


# ---------------------------------------------------------------------- configs
@pytest.mark.parametrize(
    ("name", "recipe", "learner"),
    [
        ("CoCoOp/vit_b16_c16_ep10_batch1", (1, 0.002, 10), (16, "")),
        ("CoCoOp/vit_b16_c8_ep10_batch1", (1, 0.002, 10), (8, "")),
        ("CoCoOp/vit_b16_c4_ep10_batch1", (1, 0.002, 10), (4, "")),
        ("CoCoOp/vit_b16_c4_ep10_batch1_ctxv1", (1, 0.002, 10), (4, "a photo of a")),
        ("MaPLe/vit_b16_c2_ep5_batch4_2ctx", (4, 0.0035, 5), (2, "a photo of a", 9)),
        ("MaPLe/vit_b16_c2_ep5_batch4_2ctx_cross_datasets", (4, 0.0026, 2), (2, "a photo of a", 3)),
    ],
)
def test_public_recipes(name, recipe, learner):
    args = ["--config-file", str(ROOT / f"configs/trainers/{name}.yaml")]
    cfg = train.setup_cfg(train.build_parser().parse_args(args))
    assert recipe == (cfg.DATALOADER.TRAIN_X.BATCH_SIZE, cfg.OPTIM.LR, cfg.OPTIM.MAX_EPOCH)
    node = cfg.TRAINER[name.split("/")[0].upper()]
    keys = ("N_CTX", "CTX_INIT", "PROMPT_DEPTH")
    assert tuple(node[key] for key in keys if key in node) == learner
    assert (node.PREC, cfg.MODEL.BACKBONE.NAME, cfg.INPUT.SIZE) == ("fp16", "ViT-B/16", (224, 224))

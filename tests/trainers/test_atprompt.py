"""ATPrompt on CoOp, CoCoOp, MaPLe and DePT, against a plain computation."""

from __future__ import annotations

import re

import pytest
import torch
from clip.model import CLIP

import train
from anchoropt_plugin import UserError, accelerate, attach
from anchoropt_plugin.config.merge import merge_list
from anchoropt_plugin.encoders.accelerate import install
from anchoropt_plugin.encoders.clip_models import tokenize
from anchoropt_plugin.prompts.anchored_encoder import AnchoredEncoder
from anchoropt_plugin.prompts.attachment import attachment_of
from dassl.config import get_cfg_default
from trainers import atprompt, cocoop, coop, dept, maple
from trainers.prompted_clip import PromptedCLIP

from .runs import ROOT, build, command, register_bare
from .test_cocoop_and_maple import cosine_logits, image_feature, shapes

NAMES = ["cat", "red_dog", "long haired horse"]
WORDS = ["color", "habitat", "growth"]
DIM, WIDTH, FEATURES = 64, 128, 32
M = 2
"""Soft tokens of a context, and by default of an attribute."""
HOSTS = ["CoOp", "CoCoOp", "MaPLe"]
TRAINERS = [*HOSTS, "DePT"]
PLAIN = {
    "CoOp": (coop.PromptLearner, PromptedCLIP),
    "CoCoOp": (cocoop.PromptLearner, cocoop.ConditionalCLIP),
    "MaPLe": (maple.MultiModalPromptLearner, maple.MultiModalCLIP),
}
LEARNERS = {
    "CoOp": atprompt.CoOpLearner,
    "CoCoOp": atprompt.CoCoOpLearner,
    "MaPLe": atprompt.MaPLeLearner,
}


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    model = CLIP(FEATURES, 32, 3, WIDTH, 8, 77, 49408, DIM, 4, 3)
    return model.float().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def settings(host, words, *keys, n_att=M):
    cfg = get_cfg_default()
    train.extend_cfg(cfg)
    cfg.TRAINER[host.upper()].update({"PREC": "fp32", "N_CTX": M, "CTX_INIT": ""})
    cfg.TRAINER.MAPLE.PROMPT_DEPTH = 3
    cfg.TRAINER.ATPROMPT.update({"USE_ATPROMPT": bool(words), "ATT_NUM": len(words)})
    for i in (1, 2, 3):
        cfg.TRAINER.ATPROMPT[f"N_ATT{i}"] = n_att
    for i, word in enumerate(words, start=1):
        cfg.TRAINER.ATPROMPT[f"ATT{i}_TEXT"] = word
    merge_list(cfg, keys)
    return cfg


def model_of(clip, host, words, *keys, **named):
    """Return the host's model with different values in all its parameters."""
    torch.manual_seed(0)
    learner = LEARNERS[host](settings(host, words, *keys, **named), NAMES, clip)
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return PLAIN[host][1](learner, clip)


# ---------------------------------------------------------------------- the plain computation
def embedded(clip, text):
    return clip.token_embedding(tokenize([text])[0])


def plain_prompt(clip, learner, words, name, ctx):
    """Return [SOS] soft attribute … ctx name . [EOT], cut at EOT: (L, d)."""
    rows = [embedded(clip, "")[:1]]
    for i, word in enumerate(words, start=1):
        rows += [getattr(learner, f"ctx_att{i}"), embedded(clip, word)[1:2]]
    name = f"{name.replace('_', ' ')}."
    eot = int(tokenize([name]).argmax())
    return torch.cat([*rows, ctx, embedded(clip, name)[1 : eot + 1]])


def plain_feature(clip, prompt, deep=(), start=0, order=None):
    """Encode block by block; ``order`` is the context token of each slot."""
    x = prompt + clip.positional_embedding[: len(prompt)]
    mask = torch.full((len(x), len(x)), -torch.inf).triu(1)
    for number, block in enumerate(clip.transformer.resblocks):
        if 1 <= number <= len(deep):
            rows = list(x)
            for j, value in enumerate(deep[number - 1], start=start):
                rows[1 + (order.index(j) if order else j)] = value
            x = torch.stack(rows)
        attended = block.ln_1(x)
        x = x + block.attn(attended, attended, attended, need_weights=False, attn_mask=mask)[0]
        x = x + block.mlp(block.ln_2(x))
    return clip.ln_final(x[-1]) @ clip.text_projection


def plain_logits(clip, images, host, learner, words, start=None, order=None, anchors=None):
    """Return logits (B, C), computed one prompt at a time."""
    n_slots = sum(len(getattr(learner, f"ctx_att{i + 1}")) + 1 for i in range(len(words))) + M

    def text(name, ctx, deep=()):
        prompt = plain_prompt(clip, learner, words, name, ctx)
        if order:
            tokens = torch.cat([prompt[1 : 1 + n_slots], anchors])
            prompt = torch.cat([prompt[:1], tokens[order], prompt[1 + n_slots :]])
        return plain_feature(clip, prompt, deep, n_slots - M if start is None else start, order)

    deep_text, deep_visual, shared = [], [], torch.zeros(0, WIDTH)
    if host == "MaPLe":
        deep_text = list(learner.compound_prompts_text)
        layers = zip(deep_text, learner.compound_prompt_projections, strict=True)
        deep_visual = [prompt @ layer.weight.t() + layer.bias for prompt, layer in layers]
        shared = learner.ctx @ learner.proj.weight.t() + learner.proj.bias
    rows = []
    for image in images:
        feature = image_feature(clip, image, shared, deep_visual)
        shift = learner.meta_net(feature / feature.norm()) if host == "CoCoOp" else 0.0
        texts = [text(name, learner.ctx + shift, deep_text) for name in NAMES]
        rows.append(cosine_logits(clip, feature, torch.stack(texts)))
    return torch.stack(rows)


# ---------------------------------------------------------------------- the learners
@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_public_parameters(clip, host, number):
    cfg = settings(host, WORDS[:number])
    cfg.TRAINER.ATPROMPT.update({"N_ATT1": 3, "N_ATT2": 4, "N_ATT3": 5})
    ours = shapes(LEARNERS[host](cfg, NAMES, clip))
    theirs = shapes(PLAIN[host][0](cfg, NAMES, clip))
    theirs |= {"ctx_att1": (3, DIM), "ctx_att2": (4, DIM), "ctx_att3": (5, DIM)}
    theirs |= {f"token_middle{i}": (3, 1, DIM) for i in range(1, number + 1)}
    theirs["token_suffix"] = (3, 76 - M - {1: 4, 2: 9, 3: 15}[number], DIM)
    assert ours == theirs


def test_soft_tokens_are_drawn_in_the_public_order(clip):
    torch.manual_seed(0)
    learner = atprompt.CoOpLearner(settings("CoOp", WORDS, n_att=4), NAMES, clip)
    torch.manual_seed(0)
    assert torch.equal(learner.ctx, 0.02 * torch.randn(M, DIM))
    for i in (1, 2, 3):
        assert torch.equal(getattr(learner, f"ctx_att{i}"), 0.01 * torch.randn(4, DIM))


@pytest.mark.parametrize("host", HOSTS)
def test_without_use_atprompt_the_learner_is_the_host_s(clip, host):
    cfg = settings(host, WORDS[:0])
    cfg.TRAINER.ATPROMPT.ATT_NUM = 2  # as in the yaml of a data set
    learners = []
    for kind in (LEARNERS[host], PLAIN[host][0]):
        torch.manual_seed(0)
        learners.append(kind(cfg, NAMES, clip))
    ours, theirs = (learner.state_dict() for learner in learners)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert torch.equal(learners[0].tokenized_prompts, learners[1].tokenized_prompts)


def test_an_attribute_of_two_tokens_is_cut_as_in_the_public_code(clip, capsys):
    learner = atprompt.CoOpLearner(settings("CoOp", ["playfulness", "energy"]), NAMES, clip)
    assert "'playfulness' has 2 tokens and one slot" in capsys.readouterr().out
    playful, x = (embedded(clip, text)[1] for text in ("playfulness", "X"))
    assert torch.equal(learner.token_middle1[:, 0], playful.expand(3, -1))
    assert torch.equal(learner.token_middle2[:, 0], x.expand(3, -1))
    name = embedded(clip, "cat.")[1:5]  # cat . EOT and padding
    assert torch.equal(learner.token_suffix[0, :5], torch.cat([x[None], name]))
    assert int(learner.tokenized_prompts[0].argmax()) == 1 + M + 2 + M + 1 + M + 2


def test_class_specific_contexts_share_the_attributes(clip):
    learner = atprompt.CoOpLearner(
        settings("CoOp", WORDS[:2], "TRAINER.COOP.CSC", "True"), NAMES, clip
    )
    prompts = learner()
    assert learner.ctx.shape == (3, M, DIM) and learner.ctx_att1.shape == (M, DIM)
    for prompt, name, ctx in zip(prompts, NAMES, learner.ctx, strict=True):
        want = plain_prompt(clip, learner, WORDS[:2], name, ctx)
        assert torch.equal(prompt[: len(want)], want)


# ---------------------------------------------------------------------- the models
@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("host", HOSTS)
def test_logits_and_gradients_are_those_of_the_plain_computation(clip, images, host, number, fast):
    words = WORDS[:number]
    model = model_of(clip, host, words)
    if fast:
        (forward,) = accelerate(model)
    learner = model.prompt_learner
    want = plain_logits(clip, images, host, learner, words)
    got = model(images)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert not fast or forward.in_use
    used = {
        k: p for k, p in learner.named_parameters() if k[:-1] != "ctx_att" or k[-1] <= f"{number}"
    }
    both = [torch.autograd.grad(f.square().sum(), list(used.values())) for f in (got, want)]
    for ours, theirs in zip(*both, strict=True):
        assert (ours - theirs).norm() <= 1e-3 * theirs.norm()


@pytest.mark.parametrize(("n_att", "n_words", "start"), [(M, 2, 6), (4, 1, 3), (3, 2, 6)])
@pytest.mark.parametrize("fast", [False, True])
def test_deep_prompts_take_the_slots_of_the_public_code(clip, images, n_att, n_words, start, fast):
    """Slots are counted with 2 soft tokens for each attribute, for any N_ATT."""
    words = WORDS[:n_words]
    model = model_of(clip, "MaPLe", words, n_att=n_att)
    if fast:
        accelerate(model)
    want = plain_logits(clip, images, "MaPLe", model.prompt_learner, words, start)
    torch.testing.assert_close(model(images), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("host", HOSTS)
def test_anchoropt_arranges_all_slots_at_every_block(clip, images, host, fast):
    model = model_of(clip, host, WORDS[:2])
    learner = model.prompt_learner
    anchors = 0.1 * torch.randn(1, DIM)
    n_slots = 2 * (M + 1) + M
    order = [4, 0, 6, 8, 1, 7, 2, 5, 3]  # all tokens change places
    position = attach(learner, anchors, relaxation="sinkhorn")
    assert position.n_ctx == n_slots
    with torch.no_grad():
        position.logits.copy_(10 * torch.eye(n_slots + 1)[order])
    prompts = AnchoredEncoder(attachment_of(learner))
    forward = install(model.text_encoder, prompts=prompts, in_use=fast)
    model.eval()
    got = model(images)
    want = plain_logits(
        clip, images, host, learner, WORDS[:2], n_slots - M, order=order, anchors=anchors
    )
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert forward.in_use == fast
    leaves = [learner.ctx, learner.ctx_att1, learner.ctx_att2]
    leaves += list(getattr(learner, "compound_prompts_text", []))
    both = [torch.autograd.grad(f.square().sum(), leaves) for f in (got, want)]
    for ours, theirs in zip(*both, strict=True):
        assert (ours - theirs).norm() <= 1e-3 * theirs.norm()


@pytest.mark.parametrize("number", [1, 3])
def test_both_heads_of_dept(clip, images, number):
    """The prompt's logits are CoOp's with attributes; the second head sees the same features."""
    words = WORDS[:number]
    cfg = settings("CoOp", words)
    learner = model_of(clip, "CoOp", words).prompt_learner
    torch.manual_seed(1)
    model = dept.TwoHeadedCLIP(cfg, learner, clip).eval()
    head, film = model.linear_probe_proj, model.film_lp_img
    with torch.no_grad():
        film.scale.copy_(torch.rand(FEATURES)), film.bias.copy_(torch.rand(FEATURES))
    want = plain_logits(clip, images, "CoOp", learner, words)
    torch.testing.assert_close(model(images), want, rtol=1e-4, atol=1e-4)
    model.knows_classes = True
    features = torch.stack(
        [image_feature(clip, image, torch.zeros(0, WIDTH), []) for image in images]
    )
    second = (film.scale * features + film.bias) @ head.weight.t() + head.bias
    want = 0.3 * want + 0.7 * second
    torch.testing.assert_close(model(images), want, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------- through train.py
def weights(out, host):
    folder = {"MaPLe": "MultiModalPromptLearner", "DePT": "PromptLearner"}
    folder = folder.get(host, "prompt_learner")
    return torch.load(out / folder / "model.pth.tar-2", weights_only=True)["state_dict"]


TESTED = ["--eval-only", "--load-epoch", "2", "--model-dir"]


@pytest.mark.parametrize("host", TRAINERS)
def test_a_run_with_anchoropt_reproduces_and_the_fast_branch_changes_nothing(root, tmp_path, host):
    losses = {}
    for run, fast in (("a", "True"), ("again", "True"), ("plain", "False")):
        keys = ["TRAINER.ANCHOROPT.FAST_TEXT", fast, "TRAIN.PRINT_FREQ", "1"]
        assert train.main(command(root, tmp_path / run, f"{host}_ATP_AnchorOPT", keys=keys)) == 0
        log = (tmp_path / run / "log.txt").read_text()
        losses[run] = [float(loss) for loss in re.findall(r"loss \S+ \((\S+)\) acc", log)]
    assert losses["a"] and losses["a"] == losses["again"]
    assert losses["a"] == pytest.approx(losses["plain"], rel=1e-3)
    flags = [*TESTED, str(tmp_path / "a")]
    assert train.main(command(root, tmp_path / "new", f"{host}_ATP_AnchorOPT", "new", flags)) == 0


@pytest.mark.parametrize("host", TRAINERS)
def test_the_decorator_leaves_the_host_s_numbers(root, tmp_path, host):
    register_bare("atprompt")
    names = f"{host}_ATP", f"{host}_ATP_Bare"
    for name in names:
        assert train.main(command(root, tmp_path / name, name)) == 0
    ours, theirs = (weights(tmp_path / name, host) for name in names)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("host", TRAINERS)
def test_all_parameters_in_the_prompt_learn(root, tmp_path, host):
    trainer = build(root, tmp_path, f"{host}_ATP")
    trainer.set_model_mode("train")
    trainer.num_batches, trainer.batch_idx = 2, 0
    trainer.forward_backward(next(iter(trainer.train_loader_x)))
    learner = trainer.model.prompt_learner
    without = {k for k, p in learner.named_parameters() if p.grad is None or not p.grad.any()}
    assert without == {"ctx_att2", "ctx_att3"}  # Digits has one attribute


@pytest.mark.parametrize("host", TRAINERS)
def test_anchoropt_sets_the_host_s_n_ctx(root, tmp_path, host):
    keys = ["TRAINER.ANCHOROPT.N_CTX", "1"]
    trainer = build(root, tmp_path, f"{host}_ATP_AnchorOPT", keys=keys)
    learner = trainer.model.prompt_learner
    assert len(learner.ctx) == 1
    assert trainer.anchoropt.position.n_ctx == len(learner.ctx_att1) + 1 + 1


@pytest.mark.parametrize("host", HOSTS)
def test_a_public_checkpoint_loads_for_another_data_set(root, tmp_path, host):
    """The checkpoint is of other classes, and of a data set with more attributes."""
    more = ["TRAINER.ATPROMPT.ATT_NUM", "3", "TRAINER.ATPROMPT.ATT2_TEXT", "shape"]
    more += ["TRAINER.ATPROMPT.ATT3_TEXT", "pattern"]
    source = build(root, tmp_path / "a", f"{host}_ATP", "base", more)
    (name,) = source.get_model_names()
    public = {key: value + 1 for key, value in source._models[name].state_dict().items()}
    (tmp_path / name).mkdir()
    torch.save({"state_dict": public, "epoch": 5}, tmp_path / name / "model.pth.tar-5")
    trainer = build(root, tmp_path / "b", f"{host}_ATP", "all")
    trainer.load_model(str(tmp_path), epoch=5)
    for key, value in trainer._models[name].state_dict().items():
        assert torch.equal(value, public[key]) == ("token_" not in key), key


@pytest.mark.parametrize("more", [(), ("ATT_NUM", "2", "ATT2_TEXT", "shape")])
def test_a_checkpoint_of_dept_keeps_its_head_for_its_classes_alone(root, tmp_path, more):
    keys = [ONE + word if word.startswith("ATT") else word for word in more]
    assert train.main(command(root, tmp_path / "a", "DePT_ATP", "base", keys=keys)) == 0
    saved = weights(tmp_path / "a", "DePT")
    for classes in ("base", "new"):
        trainer = build(root, tmp_path / "b", "DePT_ATP", classes)
        before = {k: v.clone() for k, v in trainer._models["PromptLearner"].state_dict().items()}
        trainer.load_model(str(tmp_path / "a"), epoch=2)
        # With another attribute the embeddings of the names begin elsewhere: no head is taken.
        knows = classes == "base" and not more
        assert trainer.model.knows_classes == knows
        for key, value in trainer._models["PromptLearner"].state_dict().items():
            kept = "token_" in key or ("linear_probe" in key and not knows)
            assert torch.equal(value, (before if kept else saved)[key]), key


# ---------------------------------------------------------------------- errors, one line each
ONE = "TRAINER.ATPROMPT."


@pytest.mark.parametrize(
    ("host", "keys", "message"),
    [
        ("CoOp", [ONE + "ATT_NUM", "4"], "ATT_NUM is 4: ATPrompt takes 1 to 3"),
        ("CoCoOp", [ONE + "ATT_NUM", "0"], "ATT_NUM is 0: ATPrompt takes 1 to 3"),
        ("MaPLe", [ONE + "ATT_NUM", "2"], "ATT2_TEXT is 'none', but ATT_NUM is 2"),
        ("CoOp", [ONE + "ATT1_TEXT", " "], "ATT1_TEXT is '', but ATT_NUM is 1"),
        ("CoOp", [ONE + "N_ATT3", "0"], "N_ATT3 is 0: give 1 or more soft tokens"),
        ("CoOp", [ONE + "N_ATT1", "90"], "CLIP reads at most 77"),
        (
            "CoOp",
            ["TRAINER.COOP.CLASS_TOKEN_POSITION", "middle"],
            "it must be 'end'",
        ),
        ("MaPLe", [ONE + "N_ATT1", "1"], "deep prompts would overwrite class names"),
        ("CoOp_ATP_AnchorOPT", [ONE + "N_ATT1", "70"], "has no room for 1 more tokens"),
    ],
)
def test_mistakes_get_one_line(root, tmp_path, capsys, host, keys, message):
    host = host if "_" in host else f"{host}_ATP"
    assert train.main(command(root, tmp_path, host, keys=keys)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_maple_of_depth_one_overwrites_no_slot(clip):
    keys = ["TRAINER.MAPLE.PROMPT_DEPTH", "1"]
    model_of(clip, "MaPLe", WORDS, *keys, n_att=1)
    with pytest.raises(UserError, match="overwrite class names"):
        model_of(clip, "MaPLe", WORDS, n_att=1)


def test_an_attribute_unknown_to_the_backbone_gives_a_warning(root, tmp_path, capsys):
    build(root, tmp_path, "CoOp_ATP", keys=[ONE + "ATT1_TEXT", "luxury"])
    assert "never saw 1 word(s) of the attributes (luxury)" in capsys.readouterr().out


# ---------------------------------------------------------------------- configs
PUBLISHED = {
    "caltech101": ("Caltech101", "shape", "size"),
    "dtd": ("DescribableTextures", "pattern", "color", "design"),
    "eurosat": ("EuroSAT", "habitat"),
    "fgvc_aircraft": ("FGVCAircraft", "design", "range"),
    "food101": ("Food101", "flavor", "preparation"),
    "imagenet": ("ImageNet", "color", "shape"),
    "imagenet_a": ("ImageNetA", "color", "shape"),
    "imagenet_r": ("ImageNetR", "color", "shape"),
    "imagenet_sketch": ("ImageNetSketch", "color", "shape"),
    "imagenetv2": ("ImageNetV2", "color", "shape"),
    "oxford_flowers": ("OxfordFlowers", "color", "habitat", "growth"),
    "oxford_pets": ("OxfordPets", "playfulness", "energy"),
    "stanford_cars": ("StanfordCars", "luxury"),
    "sun397": ("SUN397", "function"),
    "ucf101": ("UCF101", "precision"),
}


@pytest.mark.parametrize("data_set", PUBLISHED)
def test_a_public_command_line_finds_the_published_attributes(data_set):
    name, *words = PUBLISHED[data_set]
    args = [
        *("--trainer", "CoOp_ATP"),
        *("--dataset-config-file", str(ROOT / f"configs/datasets/{data_set}.yaml")),
        *("--config-file", str(ROOT / "configs/trainers/CoOp/vit_b16.yaml")),
        *("TRAINER.COOP.N_CTX", "2", "TRAINER.ATPROMPT.USE_ATPROMPT", "True"),
        *("TRAINER.ATPROMPT.N_ATT1", "2", "TRAINER.ATPROMPT.N_ATT2", "2"),
    ]
    cfg = train.setup_cfg(train.build_parser().parse_args(args))
    assert name == cfg.DATASET.NAME
    assert atprompt.attribute_words(cfg.TRAINER.ATPROMPT) == words


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("CoOp_ATP/vit_b16", (32, 0.002, 100, 2)),
        ("CoCoOp_ATP/vit_b16_c4_ep10_batch1_ctxv1", (1, 0.002, 10, 4)),
        ("DePT_ATP/vit_b16_ep10_bs4_lr35", (4, 0.0035, 10, 2)),
        ("MaPLe_ATP/vit_b16_c2_ep5_batch4_2ctx", (4, 0.0035, 5, 2)),
        ("MaPLe_ATP/vit_b16_c2_ep5_batch4_2ctx_cross_datasets", (4, 0.0026, 3, 2)),
    ],
)
def test_public_recipes(name, recipe):
    args = ["--config-file", str(ROOT / f"configs/trainers/{name}.yaml")]
    cfg = train.setup_cfg(train.build_parser().parse_args(args))
    node = name.split("_")[0].upper()
    n_ctx = cfg.TRAINER["COOP" if node == "DEPT" else node].N_CTX
    optim = cfg.OPTIM
    assert recipe == (cfg.DATALOADER.TRAIN_X.BATCH_SIZE, optim.LR, optim.MAX_EPOCH, n_ctx)
    atp = cfg.TRAINER.ATPROMPT
    assert atp.USE_ATPROMPT and {atp.N_ATT1, atp.N_ATT2, atp.N_ATT3} == {n_ctx}
    assert (cfg.MODEL.BACKBONE.NAME, cfg.INPUT.SIZE) == ("ViT-B/16", (224, 224))

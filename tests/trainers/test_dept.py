"""DePT: both heads against a plain computation, and runs of train.py."""

from __future__ import annotations

import re
import shutil

import pytest
import torch
from clip.model import convert_weights
from torch.nn import functional as F

import train
from anchoropt_plugin import accelerate
from anchoropt_plugin.method.objective import average
from tests.conftest import random_clip
from trainers import coop, dept

from .runs import ROOT, build, command, register_bare
from .test_cocoop_and_maple import (
    NAMES,
    cosine_logits,
    eots,
    settings,
    text_feature,
)

LABELS = torch.tensor([2, 0, 1, 0])
WEIGHT = 0.7
HEAD = "TRAINER.LINEAR_PROBE."


@pytest.fixture(scope="module")
def images():
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def two_headed(clip, *keys):
    """Return DePT's model with all learned parameters moved from their initial values."""
    cfg = settings("TRAINER.COOP.N_CTX", "3", *keys)
    torch.manual_seed(0)
    model = dept.TwoHeadedCLIP(cfg, coop.PromptLearner(cfg, NAMES, clip), clip)
    for name, parameter in model.named_parameters():
        if name.startswith(("prompt_learner", *dept.SECOND_HEAD)):
            parameter.requires_grad_(True).data.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def trainer_of(model):
    trainer = object.__new__(dept.DePT)
    trainer.model = model
    return trainer


def features(clip, model, images):
    """Return the features of each image and of each class, computed one by one."""
    learner = model.prompt_learner
    texts = [
        text_feature(
            clip, torch.cat([learner.token_prefix[c], learner.ctx, learner.token_suffix[c]]), eot
        )
        for c, eot in enumerate(eots("X X X"))
    ]
    return [clip.encode_image(image[None])[0] for image in images], texts


def adjusted(film, feature):
    return feature if isinstance(film, torch.nn.Identity) else film.scale * feature + film.bias


def written_out(clip, model, images, kind):
    """Return the loss, the logits of the prompts, and those of the second head."""
    image, text = features(clip, model, images)
    prompt = torch.stack([cosine_logits(clip, x, torch.stack(text)) for x in image])
    image = [adjusted(model.film_lp_img, x) for x in image]
    text = [adjusted(model.film_lp_text, x) for x in text]
    if kind == "similarity":
        second = torch.stack([cosine_logits(clip, x, torch.stack(text)) for x in image])
        losses = [-second[i].log_softmax(0)[label] for i, label in enumerate(LABELS)]
    else:
        weight, bias = model.linear_probe_proj.weight, model.linear_probe_proj.bias
        second = torch.stack([weight @ x + bias for x in image])
        losses = [-(weight @ text[y] + bias).log_softmax(0)[y] for y in LABELS]
        losses += [
            -(weight @ x + bias).log_softmax(0)[y] for x, y in zip(image, LABELS, strict=True)
        ]
    first = sum(-prompt[i].log_softmax(0)[label] for i, label in enumerate(LABELS)) / len(LABELS)
    return (1 - WEIGHT) * first + WEIGHT * sum(losses) / len(losses), prompt, second


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("film", ["True", "False"])
@pytest.mark.parametrize("kind", dept.TYPES)
def test_both_heads_match_the_plain_computation(clip, images, kind, film, fast):
    model = two_headed(clip, f"{HEAD}TYPE", kind, "TRAINER.FILM.LINEAR_PROBE", film)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    expected, prompt, second = written_out(clip, model, images, kind)
    gradients = torch.autograd.grad(expected, trained)
    if fast:
        accelerate(model)
    loss, shown = trainer_of(model).loss(images, LABELS)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    for one, other in zip(torch.autograd.grad(loss, trained), gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(shown, prompt, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model(images), prompt, rtol=1e-4, atol=1e-4)
    model.knows_classes = True
    fused = (1 - WEIGHT) * prompt + WEIGHT * second
    torch.testing.assert_close(model(images), fused, rtol=1e-4, atol=1e-4)


def test_without_fusion_logits_are_those_of_the_second_head(clip, images):
    model = two_headed(clip, f"{HEAD}TEST_TIME_FUSION", "False")
    model.knows_classes = True
    second = written_out(clip, model, images, "linear")[2]
    torch.testing.assert_close(model(images), second, rtol=1e-4, atol=1e-4)


def test_half_precision(images):
    clip = random_clip()
    convert_weights(clip)
    model = two_headed(clip)
    model.knows_classes = True
    assert model.linear_probe_proj.weight.dtype == torch.float16
    assert model.film_lp_img.scale.dtype == torch.float32
    assert model(images).dtype == torch.float16
    loss, _ = trainer_of(model).loss(images, LABELS)
    loss.backward()
    assert loss.isfinite() and model.film_lp_text.scale.grad.any()


# ---------------------------------------------------------------------- through train.py
@pytest.fixture(scope="module", params=["DePT", "DePT_AnchorOPT"])
def trained(request, root, tmp_path_factory):
    """Return a trainer's name, and the output folder of a short run on the base classes."""
    out = tmp_path_factory.mktemp("run")
    assert train.main(command(root, out, request.param)) == 0
    return request.param, out


def weights(out):
    file = out / "PromptLearner/model.pth.tar-2"
    return torch.load(file, weights_only=True)["state_dict"]


def loaded(root, out, name, classes, keys=()):
    """Return a trainer with the weights of ``out``, in evaluation, and a batch of test images."""
    trainer = build(root, out / classes, name, classes, keys)
    trainer.load_model(str(out), 2)
    trainer.set_model_mode("eval")
    return trainer, trainer.parse_batch_test(next(iter(trainer.test_loader)))[0]


@pytest.mark.parametrize("trained", ["DePT"], indirect=True)
def test_a_run_saves_the_public_parameters(trained):
    shapes = {key: tuple(value.shape) for key, value in weights(trained[1]).items()}
    assert shapes == {
        "prompt_learner.ctx": (4, 128),
        "prompt_learner.token_prefix": (5, 1, 128),
        "prompt_learner.token_suffix": (5, 72, 128),
        "film_lp_img.scale": (128,),
        "film_lp_img.bias": (128,),
        "film_lp_text.scale": (128,),
        "film_lp_text.bias": (128,),
        "linear_probe_proj.weight": (5, 128),
        "linear_probe_proj.bias": (5,),
    }


@pytest.mark.parametrize("trained", ["DePT"], indirect=True)
def test_epoch_minus_one_is_the_last(trained, root, tmp_path, capsys):
    flags = ["--eval-only", "--model-dir", str(trained[1]), "--load-epoch", "-1"]
    assert train.main(command(root, tmp_path, "DePT", "new", flags)) == 0
    assert re.search(r"model.pth.tar-2. \(epoch = 2\)", capsys.readouterr().out)


@pytest.mark.parametrize("trained", ["DePT"], indirect=True)
def test_the_decorator_leaves_the_host_s_numbers(trained, root, tmp_path):
    register_bare("dept")
    assert train.main(command(root, tmp_path, "DePT_Bare")) == 0
    ours, theirs = weights(trained[1]), weights(tmp_path)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_every_part_of_both_heads_learns_and_no_other(root, tmp_path):
    trainer = build(root, tmp_path, "DePT_AnchorOPT")
    trainer.anchoropt_stage_one()
    trainer.set_model_mode("train")
    trainer.num_batches, trainer.batch_idx = 2, 0
    trainer.forward_backward(next(iter(trainer.train_loader_x)))
    for name, parameter in trainer.model.named_parameters():
        if name.startswith(("prompt_learner.", *dept.SECOND_HEAD)):
            assert parameter.requires_grad and parameter.grad.any(), name
        else:
            assert not parameter.requires_grad and parameter.grad is None, name


def test_on_trained_classes_both_heads_are_fused(trained, root):
    name, out = trained
    trainer, images = loaded(root, out, name, "base")
    model = trainer.model
    image_features, text_features = model.features(images)
    prompt = model.logits(image_features, text_features)
    second = model.linear_probe_proj(model.film_lp_img(image_features))
    fused = (1 - WEIGHT) * prompt + WEIGHT * second
    torch.testing.assert_close(trainer.model_inference(images), fused)
    log = (out / "log.txt").read_text()
    assert f"* accuracy: {trainer.test():.1f}%" in log


@pytest.mark.parametrize("classes", ["new", "all"])
def test_on_other_classes_logits_are_those_of_the_prompts(trained, root, classes):
    name, out = trained
    trainer, images = loaded(root, out, name, classes)
    expected = trainer.model.logits(*trainer.model.features(images))
    if name == "DePT_AnchorOPT":
        trainer.anchoropt.features.clear()
        trainer.model.image_encoder(images)
        expected = average(expected, trainer.anchoropt.logits())
    torch.testing.assert_close(trainer.model_inference(images), expected)
    ctx = weights(out)["prompt_learner.ctx"]
    assert torch.equal(trainer.model.prompt_learner.ctx, ctx)


def test_a_run_on_all_classes_can_be_tested_on_some(root, tmp_path):
    whole = tmp_path / "whole"
    assert train.main(command(root, whole, "DePT", "all")) == 0
    trainer, _ = loaded(root, whole, "DePT", "new")
    head = weights(whole)["linear_probe_proj.weight"]
    assert trainer.model.knows_classes
    assert torch.equal(trainer.model.linear_probe_proj.weight, head[5:])


def test_classes_are_matched_by_name_and_then_by_order():
    names = torch.randn(4, 3, 2)
    trained = names[[0, 1, 2, 1]]
    assert dept.head_rows(trained.half(), trained) == [0, 1, 2, 3]
    assert dept.head_rows(names[[1, 0]], trained) == [1, 0]
    assert dept.head_rows(names[[0, 3]], trained) is None
    assert dept.head_rows(names[[0, 0]], trained) is None
    assert dept.head_rows(names, None) is dept.head_rows(names[:, :2], trained) is None


def test_a_resumed_run_equals_an_uninterrupted_one(trained, root, tmp_path, monkeypatch, capsys):
    name, out = trained

    def stop(trainer):
        raise KeyboardInterrupt

    keys = ["TRAIN.CHECKPOINT_FREQ", "1"]
    with monkeypatch.context() as patch:
        save = dept.DePT.save_model
        patch.setattr(dept.DePT, "save_model", lambda *args: (save(*args), stop(args)))
        assert train.main(command(root, tmp_path, name, keys=keys)) == 130
    assert train.main(command(root, tmp_path, name, keys=keys)) == 0
    assert "will resume training" in capsys.readouterr().out
    one, other = weights(out), weights(tmp_path)
    assert one.keys() == other.keys()
    for key in one:
        assert torch.equal(one[key], other[key]), key


def test_image_features_are_cached(root, tmp_path):
    trainer = build(root, tmp_path, "DePT", keys=["INPUT.TRANSFORMS", "['normalize']"])
    trainer.train()
    assert trainer.model.image_encoder.forward.hits > 0


def test_a_public_checkpoint_holds_the_whole_model(root, tmp_path):
    trainer = build(root, tmp_path, "DePT")
    public = {key: value + 1 for key, value in trainer.model.state_dict().items()}
    names = "prompt_learner.token_suffix"
    public[names] = trainer.model.state_dict()[names].clone()
    (tmp_path / "PromptLearner").mkdir()
    torch.save({"state_dict": public, "epoch": 2}, tmp_path / "PromptLearner/model.pth.tar-2")
    trainer.load_model(str(tmp_path), 2)
    assert trainer.model.knows_classes
    for name, parameter in trainer.model.named_parameters():
        expected = public[name] if parameter.requires_grad else public[name] - 1
        torch.testing.assert_close(parameter.data, expected, msg=name)


@pytest.mark.parametrize("anchoropt", ["", "_AnchorOPT"])
def test_learning_rates(root, tmp_path, anchoropt):
    trainer = build(root, tmp_path, f"DePT{anchoropt}")
    rates = {
        id(parameter): group["initial_lr"]
        for group in trainer.optim.param_groups
        for parameter in group["params"]
    }
    model = trainer.model
    assert rates[id(model.prompt_learner.ctx)] == 0.02
    for name in dept.SECOND_HEAD:
        for parameter in getattr(model, name).parameters():
            assert rates[id(parameter)] == pytest.approx(0.02 * 6.5)
    one = build(root, tmp_path, f"DePT{anchoropt}", keys=["OPTIM.STAGED_LR", "False"])
    lr = {group["initial_lr"] for group in one.optim.param_groups}
    assert lr == ({0.02, 0.05} if anchoropt else {0.02})  # position logits have another one


def test_the_number_of_soft_tokens_of_published_scripts(root, tmp_path):
    trainer = build(root, tmp_path, "DePT_AnchorOPT", keys=["TRAINER.ANCHOROPT.N_CTX", "6"])
    assert trainer.model.prompt_learner.ctx.shape == (6, 128)


@pytest.mark.parametrize("ce_weight", [1, 10])
def test_with_anchoropt_the_whole_loss_is_weighted_without_distillation(root, tmp_path, ce_weight):
    keys = ["TRAINER.ANCHOROPT.PROMPT_CE_WEIGHT", str(ce_weight)]
    trainer = build(root, tmp_path, "DePT_AnchorOPT", keys=keys)
    trainer.anchoropt_stage_one()
    trainer.set_model_mode("train")
    batch = next(iter(trainer.train_loader_x))
    trainer.num_batches, trainer.batch_idx = 2, 0
    model = trainer.model
    torch.manual_seed(0)
    image_features, text_features = model.features(batch["img"])
    first = F.cross_entropy(model.logits(image_features, text_features), batch["label"])
    second, labels = model.second_head(image_features, text_features, batch["label"])
    expected = (1 - WEIGHT) * first + WEIGHT * F.cross_entropy(second, labels)
    torch.manual_seed(0)
    assert trainer.forward_backward(batch)["loss"] == pytest.approx(ce_weight * expected.item())


# ---------------------------------------------------------------------- errors, one line each
@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ([f"{HEAD}WEIGHT", "1.5"], "TRAINER.LINEAR_PROBE.WEIGHT is 1.5: give the share of the"),
        ([f"{HEAD}WEIGHT", "-0.1"], "from 0 to 1"),
        ([f"{HEAD}TYPE", "mlp"], "TYPE is 'mlp': give one of linear, similarity"),
        (["OPTIM.LR_EXP", "-1.0"], "OPTIM.LR_EXP is -1.0, but must be 0 or more"),
        (["OPTIM.NEW_LAYERS", "['head']"], "has none of OPTIM.NEW_LAYERS ['head']:"),
    ],
)
def test_mistakes_get_one_line(root, tmp_path, capsys, keys, message):
    assert train.main(command(root, tmp_path, "DePT", keys=keys)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize("trained", ["DePT"], indirect=True)
@pytest.mark.parametrize(
    "key", [[f"{HEAD}TYPE", "similarity"], ["TRAINER.FILM.LINEAR_PROBE", "False"]]
)
def test_a_checkpoint_of_another_second_head(trained, root, tmp_path, capsys, key):
    out, bare = trained[1], tmp_path / "bare"
    shutil.copytree(out, bare, ignore=shutil.ignore_patterns("config.yaml"))
    for folder, says in ((out, f"{key[0]} was "), (bare, "another second head")):
        flags = ["--eval-only", "--model-dir", str(folder), "--load-epoch", "2"]
        assert train.main(command(root, tmp_path / "out", "DePT", flags=flags, keys=key)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert says in line


# ---------------------------------------------------------------------- configs
@pytest.mark.parametrize(
    ("name", "epochs", "staged"),
    [
        ("vit_b16_ep10_bs4_lr35", 10, False),
        ("vit_b16_ep20_bs4_lr35", 20, False),
        ("vit_b16_ep10_bs4_lr35_staged", 10, True),
    ],
)
def test_public_recipes(name, epochs, staged):
    args = ["--config-file", str(ROOT / f"configs/trainers/DePT/{name}.yaml")]
    cfg = train.setup_cfg(train.build_parser().parse_args(args))
    optim = cfg.OPTIM
    assert (0.0035, epochs, staged) == (optim.LR, optim.MAX_EPOCH, optim.STAGED_LR)
    assert (cfg.DATALOADER.TRAIN_X.BATCH_SIZE, optim.LR_EXP) == (4, 6.5)
    assert not staged or optim.BASE_LR_MULT == 1.0
    assert (cfg.TRAINER.COOP.PREC, cfg.TRAINER.LINEAR_PROBE.WEIGHT) == ("fp16", 0.7)

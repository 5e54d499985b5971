"""The two stages through train.py on the embedded data, and the decorator on look-alike hosts."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import train
from anchoropt_plugin import AnchorTokens, UserError, anchoropt
from anchoropt_plugin.config.same_run import check_same_model
from anchoropt_plugin.encoders.clip_models import load_clip, tokenize
from anchoropt_plugin.process.randomness import set_random_seed
from dassl.config import get_cfg_default
from dassl.engine import TRAINER_REGISTRY, build_trainer
from trainers import prompted_clip

ROOT = Path(__file__).parents[2]
SHORT = ["OPTIM.MAX_EPOCH", "3", "TRAINER.COOP.N_CTX", "4", "DATASET.NUM_SHOTS", "8"]
SHORT += ["TRAINER.ANCHOROPT.ANCHOR_EPOCHS", "5"]


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


def command(root, out, trainer="CoOp_AnchorOPT", classes="base", flags=(), keys=()):
    return [
        *("--root", str(root), "--output-dir", str(out), "--trainer", trainer, "--seed", "1"),
        *("--dataset-config-file", str(ROOT / "configs/datasets/digits.yaml")),
        *("--config-file", str(ROOT / "configs/trainers/CoOp/tiny.yaml")),
        *flags,
        *("DATASET.SUBSAMPLE_CLASSES", classes),
        *SHORT,
        *keys,
    ]


def run(*args, **kwargs):
    assert train.main(command(*args, **kwargs)) == 0


def build(*args, **kwargs):
    """The trainer of a command, not yet trained."""
    cfg = train.setup_cfg(train.build_parser().parse_args(command(*args, **kwargs)))
    set_random_seed(cfg.SEED)
    return build_trainer(cfg)


def test_flow(root, out, classes, model, *keys):
    flags = ["--eval-only", "--model-dir", str(model), "--load-epoch", "3"]
    run(root, out, classes=classes, flags=flags, keys=keys)


test_flow.__test__ = False


def accuracy(text):
    return float(re.findall(r"\* accuracy: ([\d.]+)%", text)[-1])


@pytest.fixture(scope="session")
def trained(root, tmp_path_factory):
    """The output folder of one short run on the base classes, anchors learned there."""
    out = tmp_path_factory.mktemp("run") / "out"
    cache = tmp_path_factory.mktemp("cache")
    run(root, out, keys=["TRAINER.ANCHOROPT.ANCHOR_CACHE", str(cache)])
    return out


def weights(out, name="prompt_learner", epoch=3):
    file = out / name / f"model.pth.tar-{epoch}"
    return torch.load(file, weights_only=True)["state_dict"]


# ---------------------------------------------------------------------- the run as users see it
def test_both_stages_leave_what_their_users_expect(trained):
    log = (trained / "log.txt").read_text()
    first, second = log.index("Stage 1: learning 1 anchor"), log.index("Stage 2: learning")
    assert first < log.index("stage 1 epoch [5/5] loss") < second < log.index("epoch [1/3] batch")
    for line in ("Finish training", "Deploy the last-epoch model", "Evaluate on the *test* set"):
        assert line in log
    assert {path.name for path in trained.iterdir()} == {
        *(
            "anchor_prompt_learner",
            "events.jsonl",
            "predictions.csv",
            "results.json",
            "anchoropt.json",
            "classes.json",
            "config.yaml",
            "log.txt",
            "position.jsonl",
            "training_images.json",
        ),
        *("prompt_learner", "tensorboard"),
    }
    assert json.loads((trained / "anchoropt.json").read_text())["classes"][:2] == ["zero", "one"]


def test_anchors_stay_and_the_rest_moves(trained, root, tmp_path):
    state = weights(trained)
    kept = AnchorTokens.load(trained).values
    assert torch.equal(state["anchoropt.anchors"], kept) and kept.any()
    start = build(root, tmp_path).model.prompt_learner.state_dict()
    assert not torch.equal(state["ctx"], start["ctx"])
    assert not torch.equal(state["anchoropt.logits"], start["anchoropt.logits"])
    assert set(state) == {  # the extra state is the temperature
        *("ctx", "token_prefix", "token_suffix", "anchoropt.logits", "anchoropt.anchors"),
        *("anchoropt._extra_state", "anchoropt.relaxation", "anchoropt.pooling"),
    }


def test_the_history_of_the_position_matrix(trained):
    lines = [json.loads(line) for line in (trained / "position.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert all(len(line["P"]) == 5 and len(line["P"][0]) == 5 for line in lines)


def test_a_run_ends_with_the_order_of_its_tokens_in_words(trained, root, tmp_path, capsys):
    theta = weights(trained)["anchoropt.logits"]
    best = max(
        itertools.permutations(range(5)), key=lambda p: sum(theta[i, j] for i, j in enumerate(p))
    )
    names = ["v1", "v2", "v3", "v4", "A1"]
    order = f"order: {' '.join(names[token] for token in best)}"
    words = "unchanged: context, then anchors" if best == (0, 1, 2, 3, 4) else order
    log = (trained / "log.txt").read_text()
    assert log[log.index("* accuracy") :].count(f"Position matrix, {words}\n") == 1
    assert "Test logits: the prompt's (ENSEMBLE auto: 0 of 5 classes were not trained)\n" in log
    assert json.loads((trained / "results.json").read_text())["order"] == words
    test_flow(root, tmp_path, "new", trained)
    out = capsys.readouterr().out
    assert f"Position matrix, {words}\n" in out
    mean = "the mean with the anchor prompt's (ENSEMBLE auto: 5 of 5 classes were not trained)"
    assert f"Test logits: {mean}\n" in out
    assert json.loads((tmp_path / "results.json").read_text())["order"] == words


def test_validation_does_not_tell_the_order(root, tmp_path, capsys):
    run(root, tmp_path, keys=["TEST.FINAL_MODEL", "best_val", "TRAINER.ANCHOROPT.POSITION", "soft"])
    log = (tmp_path / "log.txt").read_text()
    assert log.count("Evaluate on the *val* set") == 3 and log.count("Position matrix, ") == 1
    assert "Position matrix, a mixture of tokens in each slot: the nearest order, v1 v2" in log


def test_with_noise_at_test_the_order_is_the_most_likely_one(root, tmp_path):
    run(root, tmp_path, keys=["TRAINER.ANCHOROPT.PRESET", "reference"])
    theta = weights(tmp_path)["anchoropt.logits"]
    words = json.loads((tmp_path / "results.json").read_text())["order"]
    rows = [["v1", "v2", "v3", "v4", "A1"][token] for token in theta.argmax(-1)]
    assert words.startswith(f"most likely order: {' '.join(rows)}")


def test_eval_only_repeats_the_training_run_s_own_evaluation(trained, root, tmp_path, capsys):
    test_flow(root, tmp_path, "base", trained)
    again = capsys.readouterr().out
    before = (trained / "log.txt").read_text()
    for line in (r"\* correct: \S+", r"\* macro_f1: \S+"):
        assert re.findall(line, again)[-1] == re.findall(line, before)[-1]


@pytest.mark.parametrize("classes", ["new", "all"])
def test_unseen_classes_are_judged_by_the_averaged_logits(trained, root, tmp_path, classes):
    flags = ["--eval-only", "--model-dir", str(trained), "--load-epoch", "3"]
    trainer = build(root, tmp_path, classes=classes, flags=flags)
    trainer.load_model(str(trained), epoch=3)
    trainer.set_model_mode("eval")
    images, _ = trainer.parse_batch_test(next(iter(trainer.test_loader)))
    with torch.no_grad():
        together, own = trainer.model_inference(images), trainer.model(images)

    clip, names = load_clip("tiny"), trainer.dm.dataset.classnames
    tokens = tokenize([f"X of {name}." for name in names])
    x = clip.token_embedding(tokens)
    x[:, 1] = AnchorTokens.load(trained).values[0]
    x = clip.transformer((x + clip.positional_embedding).permute(1, 0, 2)).permute(1, 0, 2)
    text = clip.ln_final(x)[torch.arange(len(x)), tokens.argmax(-1)] @ clip.text_projection
    with torch.no_grad():
        anchor = F.cosine_similarity(clip.encode_image(images)[:, None], text[None], dim=-1)
    expected = (own + clip.logit_scale.exp() * anchor) / 2
    torch.testing.assert_close(together, expected, rtol=1e-4, atol=1e-3)


def test_trained_classes_are_judged_by_the_prompt_alone(trained, root, tmp_path):
    trainer = build(root, tmp_path)
    trainer.load_model(str(trained), epoch=3)
    trainer.set_model_mode("eval")
    images, _ = trainer.parse_batch_test(next(iter(trainer.test_loader)))
    assert torch.equal(trainer.model_inference(images), trainer.model(images))


@pytest.mark.parametrize(("setting", "averages"), [("always", True), ("never", False)])
def test_averaging_can_be_set(trained, root, tmp_path, setting, averages):
    trainer = build(root, tmp_path, keys=["TRAINER.ANCHOROPT.ENSEMBLE", setting])
    trainer.load_model(str(trained), epoch=3)
    assert trainer.anchoropt_rule.averages == averages


# ---------------------------------------------------------------------- numbers
def test_same_seed_same_numbers(trained, root, tmp_path):
    run(root, tmp_path / "again")
    ours, theirs = weights(trained), weights(tmp_path / "again")
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_resumed_run_equals_an_uninterrupted_one(trained, root, tmp_path):
    keys = ["TRAIN.CHECKPOINT_FREQ", "1"]
    run(root, tmp_path / "first", keys=keys)
    out = tmp_path / "second"
    shutil.copytree(tmp_path / "first", out)
    (out / "prompt_learner/model.pth.tar-3").unlink()
    (out / "prompt_learner/model.pth.tar-2").unlink()
    (out / "prompt_learner/checkpoint").write_text("model.pth.tar-1\n")
    run(root, out, keys=keys)
    ours, theirs = weights(trained), weights(out)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert (out / "position.jsonl").read_text() == (trained / "position.jsonl").read_text()


def test_the_loss_of_a_step_is_the_objective_written_out(root, tmp_path):
    settings = {"PROMPT_CE_WEIGHT": 10, "KD_WEIGHT": 100, "KD_TEMPERATURE": 2}
    settings |= {"POSITION": "identity"}
    keys = [word for key, value in settings.items() for word in (f"TRAINER.ANCHOROPT.{key}", value)]
    trainer = build(root, tmp_path, keys=list(map(str, keys)))
    trainer.anchoropt_stage_one()
    trainer.set_model_mode("train")
    batch = next(iter(trainer.train_loader_x))
    trainer.batch_idx, trainer.num_batches = 0, 2
    with torch.no_grad():
        l_n = trainer.model(batch["img"])
        l_a = trainer.anchoropt.logits()
    summary = trainer.forward_backward(batch)
    ens = ((l_n + l_a) / 2 / 2).softmax(-1)
    kl = (ens * (ens.log() - (l_n / 2).log_softmax(-1))).sum()
    expected = 10 * F.cross_entropy(l_n, batch["label"]) + 100 * 4 * kl / l_n.numel()
    assert summary["loss"] == pytest.approx(expected.item(), rel=1e-4)


def test_position_logits_have_their_own_learning_rate_on_the_host_s_schedule(root, tmp_path):
    keys = ["TRAINER.ANCHOROPT.POSITION_LR", "0.5", "OPTIM.MAX_EPOCH", "4", "OPTIM.LR", "0.002"]
    trainer = build(root, tmp_path, keys=keys)
    soft, position = trainer.optim.param_groups
    assert [p is trainer.anchoropt.position.logits for p in position["params"]] == [True]
    assert position["weight_decay"] == 0 and soft["weight_decay"] > 0
    rates = []
    for _ in range(4):
        rates.append((soft["lr"], position["lr"]))
        trainer.optim.step()
        trainer.update_lr()
    cosine = [0.5 * (1 + math.cos(math.pi * lag / 4)) for lag in range(3)]
    assert [r[0] for r in rates] == pytest.approx([1e-5, *(0.002 * c for c in cosine)])
    assert [r[1] for r in rates] == pytest.approx([1e-5 / 0.002 * 0.5, *(0.5 * c for c in cosine)])


def test_position_lr_zero_leaves_them_with_the_soft_tokens(root, tmp_path):
    trainer = build(root, tmp_path, keys=["TRAINER.ANCHOROPT.PRESET", "reference"])
    assert len(trainer.optim.param_groups) == 1


def test_resuming_from_another_folder(root, tmp_path):
    keys = ["TRAIN.CHECKPOINT_FREQ", "1"]
    run(root, tmp_path / "a", keys=keys)
    (tmp_path / "a/prompt_learner/model.pth.tar-3").unlink()
    (tmp_path / "a/prompt_learner/checkpoint").write_text("model.pth.tar-2\n")
    run(root, tmp_path / "b", flags=["--resume", str(tmp_path / "a")], keys=keys)
    ours, theirs = weights(tmp_path / "b"), weights(tmp_path / "a", epoch=2)
    assert torch.equal(ours["anchoropt.anchors"], theirs["anchoropt.anchors"])
    lines = (tmp_path / "b/position.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [3]


def test_the_temperature_falls_over_the_epochs(root, tmp_path):
    keys = ["TRAINER.ANCHOROPT.GUMBEL_TEMP_END", "0.25"]
    run(root, tmp_path, keys=keys)
    lines = (tmp_path / "position.jsonl").read_text().splitlines()
    assert [json.loads(line)["temperature"] for line in lines] == pytest.approx([1, 0.5, 0.25])


def test_the_reference_preset_reads_features_one_token_before_eot(root, tmp_path):
    trainer = build(root, tmp_path, keys=["TRAINER.ANCHOROPT.PRESET", "reference"])
    learner = trainer.model.prompt_learner
    vanilla = build(root, tmp_path, trainer="CoOp").model.prompt_learner
    assert torch.equal(learner.tokenized_prompts, vanilla.tokenized_prompts)
    assert learner.anchoropt.relaxation == "gumbel" and learner.anchoropt.sample_at_eval


@pytest.mark.parametrize("trainer", ["CoOp", "CoOp_AnchorOPT"])
def test_the_fast_text_branch_trains_to_the_same_losses(root, tmp_path, trainer):
    losses = []
    for fast in ("True", "False"):
        keys = ["TRAINER.ANCHOROPT.FAST_TEXT", fast, "OPTIM.MAX_EPOCH", "50", "TRAIN.PRINT_FREQ"]
        run(root, tmp_path / fast, trainer=trainer, keys=[*keys, "1", "OPTIM.LR", "0.02"])
        log = (tmp_path / fast / "log.txt").read_text()
        assert ("the fast text branch replaces TextEncoder" in log) == (fast == "True")
        losses.append([float(x) for x in re.findall(r"loss \S+ \((\S+)\) acc", log)])
    assert len(losses[0]) == 50
    assert losses[0] == pytest.approx(losses[1], rel=1e-4, abs=1e-4)


# ---------------------------------------------------------------------- the host is untouched
def test_the_host_gives_the_same_numbers_with_and_without_the_decorator(root, tmp_path):
    source = (ROOT / "trainers/coop.py").read_text()
    assert source.count("@anchoropt\n") == 1
    plain = source.replace("@anchoropt\n", "").replace("class CoOp(", "class BareCoOp(")
    exec(compile(plain, "bare.py", "exec"), {"__name__": "bare", "__package__": "trainers"})
    run(root, tmp_path / "decorated", trainer="CoOp")
    run(root, tmp_path / "bare", trainer="BareCoOp")
    ours, theirs = weights(tmp_path / "decorated"), weights(tmp_path / "bare")
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert "BareCoOp_AnchorOPT" not in TRAINER_REGISTRY.registered_names()


def test_a_vanilla_checkpoint_loads_and_gets_anchors(root, tmp_path, caplog):
    run(root, tmp_path / "vanilla", trainer="CoOp")
    trainer = build(root, tmp_path / "new", classes="new")
    trainer.load_model(str(tmp_path / "vanilla"), epoch=3)
    assert "trained without AnchorOPT" in caplog.text and "--trainer CoOp tests" in caplog.text
    trainer.test()
    ctx = weights(tmp_path / "vanilla")["ctx"]
    assert torch.equal(trainer.model.prompt_learner.ctx, ctx)
    assert trainer.anchoropt.has_anchors


def test_a_checkpoint_of_anchoropt_is_not_the_host_s(trained, root, tmp_path, capsys):
    flags = ["--eval-only", "--model-dir", str(trained), "--load-epoch", "3"]
    assert train.main(command(root, tmp_path, "CoOp", flags=flags)) == 2
    assert "this run has CoOp: give --trainer CoOp_AnchorOPT" in capsys.readouterr().err
    shutil.copytree(trained / "prompt_learner", tmp_path / "bare/prompt_learner")
    flags[2] = str(tmp_path / "bare")
    assert train.main(command(root, tmp_path, "CoOp", flags=flags)) == 2
    assert "whose name ends in _AnchorOPT" in capsys.readouterr().err


def test_a_checkpoint_without_the_learner_s_parameters_is_refused(root, tmp_path, capsys):
    folder = tmp_path / "run/prompt_learner"
    folder.mkdir(parents=True)
    flags = ["--eval-only", "--model-dir", str(tmp_path / "run"), "--load-epoch", "3"]
    for state in ({}, {"prompt_learner.ctx": torch.zeros(4, 128)}):
        torch.save({"state_dict": state, "epoch": 3}, folder / "model.pth.tar-3")
        assert train.main(command(root, tmp_path / "out", "CoOp", flags=flags)) == 2
        assert "only the model has ctx" in capsys.readouterr().err
    torch.save(
        {"state_dict": {"module.ctx": torch.ones(4, 128)}, "epoch": 3}, folder / "model.pth.tar-3"
    )
    trainer = build(root, tmp_path / "out", "CoOp")
    trainer.load_model(str(tmp_path / "run"), epoch=3)
    assert trainer.model.prompt_learner.ctx.eq(1).all()


def test_init_weights_start_the_soft_tokens(root, tmp_path, trained):
    file = trained / "prompt_learner/model.pth.tar-3"
    trainer = build(root, tmp_path, keys=["MODEL.INIT_WEIGHTS", str(file)])
    assert torch.equal(trainer.model.prompt_learner.ctx, weights(trained)["ctx"])


@pytest.mark.parametrize("anchor", ["random", "photo"])
def test_the_anchors_are_those_of_the_settings_not_of_init_weights(root, tmp_path, trained, anchor):
    file = trained / "prompt_learner/model.pth.tar-3"
    keys = ["TRAINER.ANCHOROPT.ANCHOR", anchor]
    values = []
    for name, more in (("a", []), ("b", ["MODEL.INIT_WEIGHTS", str(file)])):
        trainer = build(root, tmp_path / name, keys=[*keys, *more])
        torch.manual_seed(0)
        trainer.anchoropt_stage_one()
        values.append(trainer.anchoropt.position.anchors)
    assert torch.equal(*values) and not torch.equal(
        values[1], weights(trained)["anchoropt.anchors"]
    )


# ---------------------------------------------------------------------- anchors
def test_runs_with_the_same_content_share_anchors(root, tmp_path):
    keys = ["TRAINER.ANCHOROPT.ANCHOR_CACHE", str(tmp_path / "cache")]
    (tmp_path / "cache").mkdir()
    run(root, tmp_path / "a", keys=keys)
    run(root, tmp_path / "b", keys=[*keys, "SEED", "2", "TRAINER.COOP.N_CTX", "2"])
    logs = [(tmp_path / name / "log.txt").read_text() for name in "ab"]
    assert "Stage 1: learning" in logs[0] and "Stage 1: cached anchors" in logs[1]
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert torch.equal(*(AnchorTokens.load(tmp_path / name).values for name in "ab"))


def test_the_descriptions_of_a_data_set_are_found_from_anywhere(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = build(root, tmp_path)
    assert Path(trainer.cfg.TRAINER.ANCHOROPT.DESCRIPTIONS).is_file()
    trainer.anchoropt_stage_one()
    assert trainer.anchoropt.has_anchors


def test_a_description_unknown_to_the_backbone_gives_a_warning(root, tmp_path, capsys):
    names = "zero", "one", "two", "three", "four"
    texts = {name: [f"the digit {name}", "It has lobes."] for name in names}
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    keys = ["TRAINER.ANCHOROPT.DESCRIPTIONS", str(tmp_path / "texts.json")]
    build(root, tmp_path, keys=keys).anchoropt_stage_one()
    assert "word(s) of the descriptions (has, lobes)" in capsys.readouterr().out


def test_given_anchors_are_used(root, tmp_path, trained, capsys):
    values = torch.randn(1, 128)
    AnchorTokens(values).save(tmp_path / "given.pth.tar")
    keys = ["TRAINER.ANCHOROPT.ANCHOR_WEIGHTS", str(tmp_path / "given.pth.tar")]
    keys += ["TRAINER.ANCHOROPT.DESCRIPTIONS", str(ROOT / "configs/descriptions/digits.json")]
    run(root, tmp_path / "out", keys=keys)
    assert torch.equal(weights(tmp_path / "out")["anchoropt.anchors"], values)
    assert "DESCRIPTIONS is not read, as the anchors are not learned" in capsys.readouterr().out


def test_several_anchors(root, tmp_path):
    run(root, tmp_path, keys=["TRAINER.ANCHOROPT.ANCHOR_LEN", "3"])
    state = weights(tmp_path)
    assert state["anchoropt.anchors"].shape == (3, 128)
    assert state["anchoropt.logits"].shape == (7, 7)


def test_the_position_matrix_may_depend_on_the_task(root, tmp_path):
    keys = ["TRAINER.ANCHOROPT.POSITION_TASK", "True"]
    run(root, tmp_path / "base", keys=keys)
    map_ = weights(tmp_path / "base")["anchoropt.task_map"]
    assert map_.shape == (5, 5, 128) and map_.any()
    tasks = []
    for classes in ("base", "new"):
        trainer = build(root, tmp_path / classes, classes=classes, keys=keys)
        trainer.load_model(str(tmp_path / "base"), epoch=3)
        tasks.append(trainer.anchoropt.position.task)
        features = trainer.anchoropt.prompts.encode(trainer.anchoropt.position.anchors)
        torch.testing.assert_close(tasks[-1], features.mean(0))
        lr = trainer.anchoropt.settings.position_lr
        groups = [group for group in trainer.optim.param_groups if group["initial_lr"] == lr]
        assert len(groups[0]["params"]) == 2
    assert not torch.equal(*tasks)


def test_stage_one_with_images(root, tmp_path):
    run(root, tmp_path, keys=["TRAINER.ANCHOROPT.ANCHOR_CE_WEIGHT", "1.0"])
    assert "Stage 1: learning" in (tmp_path / "log.txt").read_text()


# ---------------------------------------------------------------------- errors, one line each
@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["TRAINER.ANCHOROPT.POSITION", "sinkhron"], "did you mean 'sinkhorn'?"),
        (["TRAINER.ANCHOROPT.DESCRIPTIONS", "nowhere.json"], "nowhere.json is not a file"),
        (["TRAINER.ANCHOROPT.ANCHOR_WEIGHTS", "nowhere.pth"], "nowhere.pth"),
        (["TRAINER.COOP.CLASS_TOKEN_POSITION", "middle"], "use the class token position 'end'"),
        (["TRAINER.COOP.N_CTX", "74"], "77"),
        (["TRAINER.COOP.N_CTX", "0"], "give 1 or more soft tokens"),
        (["INPUT.SIZE", "(224,224)"], "set INPUT.SIZE (32,32)"),
        (["TRAINER.COOP.PREC", "fp8"], "one of fp16, fp32, amp"),
    ],
)
def test_mistakes_get_one_line_and_status_2(root, tmp_path, capsys, keys, message):
    assert train.main(command(root, tmp_path, keys=keys)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
    assert not list(tmp_path.rglob("model*"))


def test_a_published_switch_on_a_trainer_without_anchoropt_is_told(root, tmp_path, capsys):
    keys = ["TRAINER.ANCHOROPT.USE_ANCHOROPT", "True"]
    assert train.main(command(root, tmp_path, "CoOp", keys=keys)) == 2
    assert "give --trainer CoOp_AnchorOPT" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["TRAINER.COOP.N_CTX", "5"], "another context length, CSC or backbone"),
        (["TRAINER.ANCHOROPT.ANCHOR_LEN", "2"], "trained with TRAINER.ANCHOROPT.ANCHOR_LEN 1"),
        (["TRAINER.ANCHOROPT.POSITION", "soft"], "trained with TRAINER.ANCHOROPT.POSITION sinkh"),
        (["TRAINER.ANCHOROPT.PRESET", "reference"], "trained with TRAINER.ANCHOROPT.POSITION"),
        (["TRAINER.ANCHOROPT.DEEP_EARLY", "True"], "with TRAINER.ANCHOROPT.DEEP_EARLY False"),
        (["MODEL.BACKBONE.NAME", "RN50"], "MODEL.BACKBONE.NAME was 'tiny', now 'RN50'"),
    ],
)
def test_a_checkpoint_that_does_not_fit(
    trained, root, tmp_path, capsys, change, message, monkeypatch
):
    monkeypatch.setattr(prompted_clip, "load_backbone", lambda cfg: load_clip("tiny"))
    flags = ["--eval-only", "--model-dir", str(trained), "--load-epoch", "3"]
    assert train.main(command(root, tmp_path, flags=flags, keys=change)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and str(trained) in line


def test_a_missing_checkpoint_names_those_that_are_there(trained, root, tmp_path, capsys):
    flags = ["--eval-only", "--model-dir", str(trained), "--load-epoch", "7"]
    assert train.main(command(root, tmp_path, flags=flags)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "model.pth.tar-3" in line and "--load-epoch" in line


def test_anchors_of_another_width(root, tmp_path, capsys):
    AnchorTokens(torch.randn(1, 512)).save(tmp_path / "wide.pth.tar")
    keys = ["TRAINER.ANCHOROPT.ANCHOR_WEIGHTS", str(tmp_path / "wide.pth.tar")]
    assert train.main(command(root, tmp_path / "out", keys=keys)) == 2
    assert "(1, 512), this run needs (1, 128)" in capsys.readouterr().err


# ---------------------------------------------------------------------- the decorator
def test_the_number_of_soft_tokens_of_published_scripts(root, tmp_path):
    trainer = build(root, tmp_path, keys=["TRAINER.ANCHOROPT.N_CTX", "6"])
    assert trainer.model.prompt_learner.ctx.shape == (6, 128)


def test_a_number_of_soft_tokens_that_the_words_overrule_is_told(root, tmp_path, capsys):
    keys = ["TRAINER.COOP.CTX_INIT", "a photo of a", "TRAINER.ANCHOROPT.N_CTX"]
    assert train.main(command(root, tmp_path, keys=[*keys, "6"])) == 2
    assert (
        "TRAINER.ANCHOROPT.N_CTX is 6, but the prompt learner of CoOp has 4 soft tokens, as many "
        "as its CTX_INIT 'a photo of a': give CTX_INIT '' or N_CTX 4\n"
    ) in capsys.readouterr().err
    assert build(root, tmp_path, keys=[*keys, "4"]).model.prompt_learner.ctx.shape == (4, 128)


def host_like(name, **members):
    """CoOp under another name, with some members replaced."""
    host = TRAINER_REGISTRY.get("CoOp")
    return TRAINER_REGISTRY.register()(type(name, (host,), {"node": "COOP", **members}))


def test_arguments_of_the_decorator_are_defaults(root, tmp_path):
    anchoropt(host_like("HostA"), name="HostA_Rows", position="gumbel")
    assert build(root, tmp_path, "HostA_Rows").anchoropt.settings.position == "gumbel"
    keys = ["TRAINER.ANCHOROPT.POSITION", "identity"]
    trainer = build(root, tmp_path, "HostA_Rows", keys=keys)
    assert trainer.anchoropt.settings.position == "identity"


def test_a_record_has_the_settings_in_force_and_gives_the_same_run(root, tmp_path, capsys):
    anchoropt(host_like("HostC"), name="HostC_Soft", position="soft", anchor_len=2, n_ctx=3)
    keys = ["TRAINER.ANCHOROPT.PRESET", "reference", "TRAINER.ANCHOROPT.DESCRIPTIONS", ""]
    parse = train.build_parser().parse_args
    cfg = train.setup_cfg(parse(command(root, tmp_path, "HostC_Soft", keys=keys)))
    plain = cfg.clone()  # as another train.py would have it
    plain.defrost()
    plain.TRAINER.ANCHOROPT = get_cfg_default().TRAINER.ANCHOROPT
    plain.merge_from_list([*SHORT, *keys])
    trainer = build_trainer(plain)
    settings = trainer.anchoropt.settings
    assert (settings.position, settings.anchor_len, settings.n_ctx) == ("soft", 2, 3)
    assert settings.pooling == "unshifted", "of the preset"
    told = "TRAINER.ANCHOROPT, by @anchoropt or PRESET: N_CTX 3, ANCHOR_LEN 2, POSITION soft, "
    assert told in capsys.readouterr().out
    for recorded in (cfg, trainer.recorded_cfg):
        node = recorded.TRAINER.ANCHOROPT
        assert {name.lower(): value for name, value in node.items()} == asdict(settings)
    file = tmp_path / "config.yaml"
    file.write_text(trainer.recorded_cfg.dump())
    assert train.setup_cfg(parse(["--trainer", "HostC_Soft", "--config-file", str(file)])) == cfg


def test_a_subclass_of_the_trained_host_tests_its_model(trained, root, tmp_path):
    """As without AnchorOPT: it may change only the test."""
    anchoropt(host_like("OnlyTests"))
    tester = build(root, tmp_path, "OnlyTests_AnchorOPT")
    tester.load_model(str(trained), epoch=3)
    other = build(root, tmp_path, "CoOp_AnchorOPT")
    with pytest.raises(UserError, match="was trained with CoOp_AnchorOPT, this run has MaPLe"):
        check_same_model(other.anchoropt_cfg, trained, TRAINER_REGISTRY.get("MaPLe_AnchorOPT"))


def test_a_host_without_a_learner_of_that_name_is_told(root, tmp_path, capsys):
    anchoropt(host_like("HostB"), learner="my_prompts")
    assert train.main(command(root, tmp_path, "HostB_AnchorOPT")) == 2
    assert "no module named 'my_prompts'" in capsys.readouterr().err


def test_a_host_without_prompts_is_told(root, tmp_path, capsys):
    def build_model(self):
        self.clip_model = load_clip(self.cfg.MODEL.BACKBONE.NAME)

    anchoropt(host_like("HostWithoutPrompts", build_model=build_model))
    assert train.main(command(root, tmp_path, "HostWithoutPrompts_AnchorOPT")) == 2
    assert "HostWithoutPrompts has no prompt learner" in capsys.readouterr().err


def test_a_loss_that_is_not_a_cross_entropy_is_told(root, tmp_path, capsys):
    def forward_backward(self, batch):
        return {"loss": self.model(batch["img"]).square().mean().item()}

    anchoropt(host_like("HostOfSquares", forward_backward=forward_backward))
    assert train.main(command(root, tmp_path, "HostOfSquares_AnchorOPT")) == 2
    assert "HostOfSquares computes no F.cross_entropy" in capsys.readouterr().err


def test_a_host_that_optimises_its_context_alone_is_told(root, tmp_path, capsys):
    """Otherwise the position matrix would stay as it was, and nobody would notice."""

    def build_model(self):
        TRAINER_REGISTRY.get("CoOp").build_model(self)
        (name,) = self._models
        self.optim = torch.optim.SGD([self.model.prompt_learner.ctx], lr=0.1)
        self._optims[name] = self.optim

    anchoropt(host_like("HostH", build_model=build_model))
    assert train.main(command(root, tmp_path, "HostH_AnchorOPT")) == 2
    assert "no optimiser of HostH holds the position logits" in capsys.readouterr().err


def test_a_later_optimiser_of_the_context_alone_is_told(root, tmp_path, capsys):
    def before_epoch(self):
        self.optim = torch.optim.SGD([self.model.prompt_learner.ctx], lr=0.1)

    anchoropt(host_like("HostOfPhases", before_epoch=before_epoch))
    assert train.main(command(root, tmp_path, "HostOfPhases_AnchorOPT")) == 2
    says = "the optimiser that HostOfPhases steps holds the soft tokens of its prompt learner, but"
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("which", ["training", "own draw", "fixed position", "test"])
def test_a_learner_that_is_not_called_is_told(root, tmp_path, capsys, which):
    """Another method of the learner makes prompts without anchors."""

    def logits(model, images, is_called):
        learner = model.prompt_learner
        prompts = learner() if is_called else type(learner).forward(learner)
        texts = model.text_encoder(prompts, model.tokenized_prompts)
        return model.logits(model.image_encoder(images), texts)

    def forward_backward(self, batch):
        images, labels = self.parse_batch_train(batch)
        loss = F.cross_entropy(logits(self.model, images, which == "test"), labels)
        if which == "own draw":
            loss = loss + self.model.prompt_learner().mean()
        self.model_backward_and_update(loss)
        return {"loss": loss.item()}

    def model_inference(self, images):
        return logits(self.model, images, which not in ("test", "fixed position"))

    host = host_like(
        "HostI" + which.replace(" ", ""),
        forward_backward=forward_backward,
        model_inference=model_inference,
    )
    anchoropt(host)
    words = command(root, tmp_path, f"{host.__name__}_AnchorOPT")
    if which == "fixed position":
        words += ["TRAINER.ANCHOROPT.POSITION", "identity"]
    assert train.main(words) == 2
    assert "the host gets its prompts without calling its learner" in capsys.readouterr().err


def test_position_logits_that_are_frozen_at_each_step_are_told(root, tmp_path, capsys):
    def forward_backward(self, batch):
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name.endswith("ctx"))
        return TRAINER_REGISTRY.get("CoOp").forward_backward(self, batch)

    anchoropt(host_like("HostZ", forward_backward=forward_backward))
    assert train.main(command(root, tmp_path, "HostZ_AnchorOPT")) == 2
    assert "the host freezes the position logits" in capsys.readouterr().err


def test_position_logits_learn_in_a_host_that_trains_only_what_is_named_ctx(root, tmp_path):
    def build_model(self):
        TRAINER_REGISTRY.get("CoOp").build_model(self)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_("ctx" in name)

    anchoropt(host_like("HostE", build_model=build_model))
    trainer = build(root, tmp_path, "HostE_AnchorOPT")
    trainer.anchoropt_stage_one()
    trainer.set_model_mode("train")
    trainer.num_batches, trainer.batch_idx = 2, 0
    trainer.forward_backward(next(iter(trainer.train_loader_x)))
    assert trainer.anchoropt.position.logits.grad.any()


def test_further_losses_of_the_host_stay(root, tmp_path):
    def forward_backward(self, batch):
        image, label = self.parse_batch_train(batch)
        F.cross_entropy(torch.zeros(len(label), 5), label)  # before any image: not the prompt's
        output = self.model(image)
        loss = F.cross_entropy(output, label) + 1000 * self.model.prompt_learner.ctx.square().sum()
        self.model_backward_and_update(loss)
        return {"loss": loss.item(), "logits": output.detach()}

    anchoropt(host_like("HostD", forward_backward=forward_backward))
    keys = ["TRAINER.ANCHOROPT.KD_WEIGHT", "0", "TRAINER.ANCHOROPT.PROMPT_CE_WEIGHT", "2"]
    trainer = build(root, tmp_path, "HostD_AnchorOPT", keys=keys)
    trainer.anchoropt_stage_one()
    batch = next(iter(trainer.train_loader_x))
    extra = 1000 * trainer.model.prompt_learner.ctx.square().sum().item()
    summary = trainer.forward_backward(batch)
    expected = 2 * F.cross_entropy(summary["logits"], batch["label"]).item() + extra
    assert summary["loss"] == pytest.approx(expected, rel=1e-5)

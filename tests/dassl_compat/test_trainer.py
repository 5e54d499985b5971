"""A whole run of a linear trainer: its log, its checkpoints, its results, and resuming."""

from __future__ import annotations

import re
from functools import reduce
from operator import getitem
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from yacs.config import CfgNode

from anchoropt_plugin import UserError
from anchoropt_plugin.dassl_compat.engine import trainer as engine
from anchoropt_plugin.dassl_compat.saved_weights import CHANGED
from anchoropt_plugin.files import checkpoints
from anchoropt_plugin.files.run_events import read_events, read_results
from anchoropt_plugin.files.training_images import digest_of_names, images_of, images_per_class
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.utils import (
    load_checkpoint,
    resume_from_checkpoint,
    save_checkpoint,
    set_random_seed,
)

LINE = re.compile(
    r"epoch \[(\d+)/4\] batch \[(\d)/4\] time \d+\.\d{3} \(\d+\.\d{3}\) "
    r"data \d+\.\d{3} \(\d+\.\d{3}\) loss \d+\.\d{4} \(\d+\.\d{4}\) "
    r"acc \d+\.\d{4} \(\d+\.\d{4}\) lr (\d\.\d{4}e[+-]\d\d) eta \d+:\d\d:\d\d"
)


def trained(cfg, stop_after=None):
    """Train as train.py does; with ``stop_after``, like a run killed after that epoch."""
    set_random_seed(cfg.SEED)
    trainer = build_trainer(cfg)
    if stop_after is None:
        trainer.train()
        return trainer
    after_epoch = trainer.after_epoch

    def stop():
        after_epoch()
        if trainer.epoch + 1 == stop_after:
            raise KeyboardInterrupt

    trainer.after_epoch = stop
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    return trainer


def weights(trainer):
    return torch.cat([value.flatten() for value in trainer.model.state_dict().values()])


def test_log(cfg, capsys):
    trainer = trained(cfg)
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("trainable params: 579 || all params: 579 || trainable%: 100.0000")
    assert LINE.fullmatch(lines[start + 1]), "3 · 8 · 8 weights and a bias for each of 3 classes"
    found = [match.groups() for match in map(LINE.fullmatch, lines) if match]
    # PRINT_FREQ is 2 of 4 batches; the host steps the schedule in an epoch's last batch.
    cosine = [0.1, 0.08535533905932738, 0.05, 0.014644660940672627]
    shown = [f"{lr:.4e}" for lr in [0.001, *cosine]]
    assert found == [
        (str(epoch + 1), batch, shown[epoch + (batch == "4")])
        for epoch in range(4)
        for batch in ("2", "4")
    ]
    assert trainer.rates[::4] == pytest.approx([0.001, *cosine[:3]])

    end = lines[lines.index("Finish training") :]
    assert end[1:4] == ["Deploy the last-epoch model", "Evaluate on the *test* set", "=> result"]
    assert end[4] == "* total: 12"
    assert [line.split(":")[0] for line in end[5:9]] == [
        "* correct", "* accuracy", "* error", "* macro_f1",
    ]  # fmt: skip
    assert re.fullmatch(r"Elapsed: \d+:\d\d:\d\d", end[9])
    assert len(end) == 10


def test_a_short_epoch_prints_every_batch(cfg, capsys):
    cfg.TRAIN.PRINT_FREQ, cfg.OPTIM.MAX_EPOCH = 5, 1
    trained(cfg)
    assert len(re.findall(r"batch \[\d/4\]", capsys.readouterr().out)) == 4


def test_it_learns(cfg):
    cfg.OPTIM.MAX_EPOCH = 10
    assert trained(cfg).test() > 90


def test_checkpoints(cfg):
    cfg.TRAIN.CHECKPOINT_FREQ = 3
    trainer = trained(cfg)
    folder = Path(cfg.OUTPUT_DIR, "linear")
    names = sorted(file.name for file in folder.iterdir())
    assert names == ["checkpoint", "model.pth.tar-3", "model.pth.tar-4"]
    assert (folder / "checkpoint").read_text() == "model.pth.tar-4\n"
    assert list(Path(cfg.OUTPUT_DIR, "tensorboard").iterdir())

    # The file has only tensors and plain containers, so torch reads it with weights_only.
    checkpoint = torch.load(folder / "model.pth.tar-4", weights_only=True)
    assert set(checkpoint) >= {"state_dict", "epoch", "optimizer", "scheduler", "val_result"}
    assert checkpoint["epoch"] == 4
    assert checkpoint["val_result"] is None
    assert torch.equal(checkpoint["state_dict"]["2.weight"], trainer.model[2].weight)
    assert checkpoint["scheduler"]["successor"]["last_epoch"] == 3


def test_data_parallels_prefix_is_stripped(cfg):
    trainer = build_trainer(cfg)
    trainer._models["linear"] = nn.DataParallel(trainer.model)
    trainer.save_model(0, cfg.OUTPUT_DIR, is_best=True)
    folder = Path(cfg.OUTPUT_DIR, "linear")
    for name in ("model.pth.tar-1", "model-best.pth.tar"):
        assert set(load_checkpoint(folder / name)["state_dict"]) == {"2.weight", "2.bias"}


@pytest.mark.parametrize("final_model", ["last_step", "best_val"])
def test_a_run_that_was_stopped_ends_like_one_that_was_not(cfg, tmp_path, final_model, capsys):
    cfg.TRAIN.CHECKPOINT_FREQ, cfg.TEST.FINAL_MODEL = 1, final_model
    whole = trained(cfg)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("* ")]

    cfg.OUTPUT_DIR = str(tmp_path / "stopped")
    trained(cfg, stop_after=2)
    resumed = trained(cfg)
    out = capsys.readouterr().out
    assert f"Found checkpoint at {cfg.OUTPUT_DIR} (will resume training)" in out
    assert len(resumed.rates) == 2 * 4
    assert resumed.rates == pytest.approx(whole.rates[8:])
    assert torch.equal(weights(resumed), weights(whole))
    # The last evaluation of both runs is that of the deployed model.
    assert [line for line in out.splitlines() if line.startswith("* ")][-5:] == lines[-5:]


# ---------------------------------------------------------------------- results and events
def test_a_run_writes_its_epochs_and_its_results(cfg, capsys):
    trainer = trained(cfg)
    events = read_events(cfg.OUTPUT_DIR)
    assert [(event["epoch"], event["epochs"]) for event in events] == [(n, 4) for n in range(1, 5)]
    # The rate is that of the first step of the epoch, the means are those of its last log line.
    assert [event["lr"] for event in events] == trainer.rates[::4]
    said = capsys.readouterr().out
    for name in ("loss", "acc"):
        shown = re.findall(rf"batch \[4/4\] .*{name} \S+ \((\S+)\)", said)
        assert shown == [f"{event[name]:.4f}" for event in events]
    results = read_results(cfg.OUTPUT_DIR)
    assert results["split"] == "test" and results["after_training"]
    assert results["total"] == 12
    assert results["images_per_class"] == {"fewest": 6, "most": 6}
    assert results["accuracy"] == 100 * results["correct"] / 12 == 100 - results["error_rate"]
    assert f"* correct: {results['correct']}\n" in said
    assert f"* macro_f1: {results['macro_f1']:.1f}%" in said


def test_a_test_alone_does_not_count_as_the_end_of_a_training(cfg):
    build_trainer(cfg).test()
    assert not Path(cfg.OUTPUT_DIR).exists()  # the folder is not made for results.json
    trained(cfg)
    build_trainer(cfg).test()
    assert not read_results(cfg.OUTPUT_DIR)["after_training"]


def test_a_validation_is_not_the_last_test(cfg):
    cfg.TEST.FINAL_MODEL = "best_val"
    trained(cfg, stop_after=2)
    assert read_results(cfg.OUTPUT_DIR) == {}
    assert trained(cfg).best_result > 0 and read_results(cfg.OUTPUT_DIR)["split"] == "test"


@pytest.mark.parametrize("after_event", [False, True])
def test_a_kill_around_an_event_leaves_no_trace(cfg, tmp_path, monkeypatch, after_event):
    cfg.TRAIN.CHECKPOINT_FREQ = 1
    trained(cfg)
    names = "results.json", "events.jsonl"
    whole = [Path(cfg.OUTPUT_DIR, name).read_bytes() for name in names]

    cfg.OUTPUT_DIR = str(tmp_path / "stopped")
    append = engine.append_event

    def killed(folder, kind, **values):
        if after_event:
            append(folder, kind, **values)
        if values["epoch"] == 3:
            raise KeyboardInterrupt
        append(folder, kind, **values)

    monkeypatch.setattr(engine, "append_event", killed)
    with pytest.raises(KeyboardInterrupt):
        trained(cfg)
    assert len(read_events(cfg.OUTPUT_DIR)) == 2 + after_event
    monkeypatch.undo()
    assert trained(cfg).start_epoch == 2
    assert [Path(cfg.OUTPUT_DIR, name).read_bytes() for name in names] == whole


def test_a_training_that_begins_again_is_not_finished(cfg):
    cfg.TRAIN.CHECKPOINT_FREQ = 1
    trained(cfg)
    before = read_results(cfg.OUTPUT_DIR)
    again = build_trainer(cfg)
    again.before_train()
    assert read_results(cfg.OUTPUT_DIR) == {} and len(read_events(cfg.OUTPUT_DIR)) == 4
    assert trained(cfg).start_epoch == 4 and read_results(cfg.OUTPUT_DIR) == before


def test_resume_from_another_folder(cfg, tmp_path):
    cfg.TRAIN.CHECKPOINT_FREQ = 1
    trained(cfg, stop_after=3)
    cfg.RESUME, cfg.OUTPUT_DIR = cfg.OUTPUT_DIR, str(tmp_path / "other")
    resumed = trained(cfg)
    assert resumed.start_epoch == 3
    assert not Path(cfg.OUTPUT_DIR, "linear", "model.pth.tar-3").exists()
    assert Path(cfg.OUTPUT_DIR, "linear", "model.pth.tar-4").exists()


def test_a_folder_without_a_finished_checkpoint_is_no_reason_to_fail(cfg, capsys):
    Path(cfg.OUTPUT_DIR, "linear").mkdir(parents=True)
    trained(cfg)
    assert "No checkpoint found, train from scratch" in capsys.readouterr().out


def test_a_checkpoint_of_another_model_is_refused(cfg):
    cfg.OPTIM.MAX_EPOCH = 1
    trained(cfg)
    path = Path(cfg.OUTPUT_DIR, "linear", "model.pth.tar-1")
    checkpoints.save({**load_checkpoint(path), "state_dict": {"w": torch.zeros(1)}}, path)
    with pytest.raises(UserError, match=r"cannot resume from .*model\.pth\.tar-1: .*Missing key"):
        trained(cfg)
    with pytest.raises(UserError, match="does not fit the model linear"):
        build_trainer(cfg).load_model(cfg.OUTPUT_DIR, epoch=1)


class Hostile:
    """An object in a pickle that is read as a ``Foreign``."""


def spoil(checkpoint, keys, value):
    for key in keys[:-1]:
        checkpoint = checkpoint[key]
    checkpoint[keys[-1]] = value


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (["optimizer"], [1, 2]),
        (["optimizer"], {"state": {}}),
        (["optimizer"], Hostile()),
        (["optimizer", "param_groups"], 5),
        (["optimizer", "param_groups", 0, "lr"], "fast"),
        (["optimizer", "param_groups", 0, "lr"], Hostile()),
        (["optimizer", "state", 0, "momentum_buffer"], "much"),
        (["optimizer", "state", 0, "momentum_buffer"], Hostile()),
        (["optimizer", "state", 0, "momentum_buffer"], torch.zeros(3)),
        (["optimizer", "state", 0], 5),
        (["scheduler"], 5),
        (["scheduler"], {}),
        (["scheduler", "last_epoch"], "late"),
        (["scheduler", "last_epoch"], Hostile()),
        (["scheduler", "successor"], 5),
        (["scheduler", "successor", "base_lrs"], ["a"]),
        (["rng"], 5),
        (["rng"], Hostile()),
        (["rng", "python"], (3, "a", None)),
        (["rng", "numpy"], ("MT19937",)),
        (["rng", "torch"], torch.zeros(3)),
    ],
)
def test_a_spoilt_state_is_refused(cfg, keys, value):
    cfg.OPTIM.MAX_EPOCH, cfg.TRAIN.CHECKPOINT_FREQ = 2, 1
    trained(cfg, stop_after=1)
    path = Path(cfg.OUTPUT_DIR, "linear", "model.pth.tar-1")
    checkpoint = load_checkpoint(path)
    spoil(checkpoint, keys, value)
    torch.save(checkpoint, path)
    with pytest.raises(UserError, match=r"^cannot resume from .*model\.pth\.tar-1: [^\n]+$"):
        trained(cfg)


def test_a_checkpoint_of_other_classes_is_refused(tmp_path):
    learner = nn.Module()
    learner.ctx = nn.Parameter(torch.zeros(2))
    learner.register_buffer("token_suffix", torch.randn(3, 4) * 0.02)
    suffix = learner.token_suffix.clone()
    save_checkpoint({"state_dict": learner.state_dict(), "epoch": 3}, tmp_path)
    learner.token_suffix = suffix.half().float()  # the same in half precision
    assert resume_from_checkpoint(tmp_path, learner) == 3
    for other in (suffix.flip(0), torch.zeros(5, 4)):
        learner.token_suffix = other
        with pytest.raises(UserError, match="token_suffix belongs to other classes"):
            resume_from_checkpoint(tmp_path, learner)


@pytest.mark.parametrize("name", ["linear", "tensorboard"])
def test_a_file_in_the_way_is_found_before_training(cfg, name):
    Path(cfg.OUTPUT_DIR).mkdir()
    Path(cfg.OUTPUT_DIR, name).touch()
    trainer = build_trainer(cfg)
    with pytest.raises(FileExistsError, match=name):
        trainer.train()
    assert not trainer.rates


def test_a_folder_in_the_way_of_the_checkpoint_is_found_before_training(cfg):
    Path(cfg.OUTPUT_DIR, "linear", "checkpoint").mkdir(parents=True)
    trainer = build_trainer(cfg)
    with pytest.raises(IsADirectoryError):
        trainer.train()
    assert not trainer.rates


def test_best_val(cfg, capsys, monkeypatch):
    cfg.TEST.FINAL_MODEL = "best_val"
    set_random_seed(cfg.SEED)
    trainer = build_trainer(cfg)
    results = iter([50.0, 80.0, 70.0, 80.0])
    evaluate = trainer.test
    monkeypatch.setattr(
        trainer, "test", lambda split=None: next(results) if split == "val" else evaluate(split)
    )
    trainer.train()
    out = capsys.readouterr().out
    folder = Path(cfg.OUTPUT_DIR, "linear")
    best = load_checkpoint(folder / "model-best.pth.tar")
    assert (best["epoch"], best["val_result"]) == (2, 80.0)
    assert "Deploy the model with the best val performance" in out
    assert torch.equal(trainer.model[2].weight, best["state_dict"]["2.weight"])

    # A resumed run does not take a worse epoch for the best one.
    again = build_trainer(cfg)
    again.before_train()
    assert (again.start_epoch, again.best_result) == (4, 80.0)


def test_best_val_without_validation_images(cfg, monkeypatch):
    cfg.TEST.FINAL_MODEL = "best_val"
    trainer = build_trainer(cfg)
    trainer.val_loader = None
    with pytest.raises(UserError, match="best_val, but GreyImages has no validation images"):
        trainer.train()
    assert not trainer.rates and not Path(cfg.OUTPUT_DIR).exists()
    trainer.cfg.TEST.NO_TEST = True  # nothing is chosen
    trainer.train()
    assert trainer.rates


def test_loading(cfg, capsys):
    trainer = trained(cfg)
    fresh = build_trainer(cfg)
    fresh.load_model(cfg.OUTPUT_DIR, epoch=4)  # val_result is None in this one
    assert torch.equal(weights(fresh), weights(trainer))
    assert "to linear (epoch=4, val_result=None)" in capsys.readouterr().out
    fresh.load_model("")
    assert "No model is loaded" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"no model at .*model-best.*folder: model\.pth\.tar-4\)"):
        fresh.load_model(cfg.OUTPUT_DIR)
    with pytest.raises(UserError, match=r"nowhere holds no model 'linear': give the output folder"):
        fresh.load_model("nowhere")


def test_splits(cfg, capsys):
    trainer = build_trainer(cfg)
    cfg.TEST.SPLIT = "val"
    trainer.test()
    out = capsys.readouterr().out
    assert "Evaluate on the *val* set" in out
    assert "* total: 6\n" in out
    trainer.val_loader = None
    with pytest.raises(UserError, match=r"TEST\.SPLIT is val, but .* has no validation images"):
        trainer.test()
    cfg.TEST.SPLIT = "test"
    trainer.test(split="val")
    assert "Evaluate on the *test* set" in capsys.readouterr().out
    assert not trainer.model.training


@pytest.mark.parametrize("saves", [False, True])
def test_weights_that_no_checkpoint_has_are_told(cfg, saves, caplog):
    trainer = build_trainer(cfg)
    after_train = trainer.after_train

    def average_weights():
        with torch.no_grad():
            next(trainer.model.parameters()).mul_(0.5)
        if saves:
            trainer.save_model(trainer.epoch, trainer.output_dir)
        after_train()

    trainer.after_train = average_weights
    trainer.train()
    told = "has changed its weights since the last checkpoint" in caplog.text
    assert told == read_results(cfg.OUTPUT_DIR).get(CHANGED, False) == (not saves)


def test_no_test(cfg, capsys):
    cfg.TEST.NO_TEST, cfg.OPTIM.MAX_EPOCH = True, 1
    trained(cfg)
    assert "Evaluate" not in capsys.readouterr().out


def test_the_same_seed_gives_the_same_numbers(cfg, tmp_path):
    first = weights(trained(cfg))
    cfg.OUTPUT_DIR = str(tmp_path / "second")
    assert torch.equal(weights(trained(cfg)), first)
    cfg.OUTPUT_DIR, cfg.SEED = str(tmp_path / "third"), 4
    assert not torch.equal(weights(trained(cfg)), first)


def test_a_loss_that_is_not_finite_stops_the_run(cfg):
    trainer = build_trainer(cfg)
    before = weights(trainer).clone()
    with pytest.raises(FloatingPointError, match="Loss is infinite or NaN!"):
        trainer.model_backward_and_update(weights(trainer).sum() * float("nan"))
    assert torch.equal(weights(trainer), before)


@pytest.mark.parametrize("angle", [-1.0, 1.0])
def test_prograd_drops_what_raises_the_other_loss(cfg, angle):
    trainer = build_trainer(cfg)
    first, second, unused = (nn.Parameter(torch.tensor([1.0, 2.0])) for _ in range(3))
    model = nn.ParameterList([first, second, unused])
    trainer._models = {"m": model}
    trainer._optims = {"m": torch.optim.SGD(model.parameters(), lr=1.0)}
    a, b = torch.tensor([3.0, 4.0]), torch.tensor([angle, 0.0])
    trainer.prograd_backward_and_update((a * first + a * second).sum(), (b * first).sum(), 0.5)
    # Only the first gradient has a part against the other loss: (3, 0), half of which goes.
    wanted = a - torch.tensor([1.5, 0.0]) * (angle < 0)
    assert first.tolist() == (torch.tensor([1.0, 2.0]) - wanted).tolist()
    assert second.tolist() == [-2.0, -2.0] and unused.tolist() == [1.0, 2.0]


def test_models_by_name(cfg):
    trainer = build_trainer(cfg)
    trainer.register_model("frozen", nn.Linear(1, 1))
    assert trainer.get_model_names() == ["linear", "frozen"]
    assert trainer.get_model_names("frozen") == ["frozen"]
    with pytest.raises(ValueError, match="frozen"):
        trainer.register_model("frozen", nn.Linear(1, 1))
    with pytest.raises(KeyError, match="thawed"):
        trainer.get_model_names(["thawed"])
    trainer.set_model_mode("eval", names="frozen")
    assert trainer.model.training
    assert not trainer._models["frozen"].training
    with pytest.raises(KeyError, match="sleep"):
        trainer.set_model_mode("sleep")
    trainer.model_update()
    trainer.update_lr()
    assert trainer.get_current_lr() == 0.1
    with pytest.raises(ValueError, match="no optimiser"):
        trainer.get_current_lr("frozen")

    trainer.save_model(0, cfg.OUTPUT_DIR)
    trainer.save_model(1, cfg.OUTPUT_DIR)
    folder = Path(cfg.OUTPUT_DIR, "frozen")
    (folder / "model.pth.tar-1").replace(folder / "model.pth.tar-2")
    with pytest.raises(UserError, match="is named after epoch 2, but holds epoch 1"):
        trainer.resume_model_if_exist(cfg.OUTPUT_DIR)
    (folder / "model.pth.tar-2").replace(folder / "model-best.pth.tar")
    best = Path(cfg.OUTPUT_DIR, "linear", "model-best.pth.tar")
    best.with_name("model.pth.tar-2").replace(best)
    for path in (best.parent, folder):
        (path / "checkpoint").write_text("model-best.pth.tar\n")
    with pytest.raises(UserError, match=r"different epochs \[1, 2\]"):
        trainer.resume_model_if_exist(cfg.OUTPUT_DIR)


def test_a_data_manager_of_ones_own_may_lack_what_only_the_records_read(cfg):
    trainer = build_trainer(cfg)
    trainer.save_model(0, cfg.OUTPUT_DIR)
    del trainer.dm
    trainer.load_model(cfg.OUTPUT_DIR, epoch=1)
    image = SimpleNamespace(impath="a.png", label=0)
    assert images_of(SimpleNamespace(test=[image]), "test")["names"] == digest_of_names([])
    odd = SimpleNamespace(impath="a.png", label=[torch.zeros(1)])
    assert all(images_per_class(SimpleNamespace(**x)) is None for x in ({}, {"train_x": [odd]}))
    repeated = SimpleNamespace(train_x=[image, image, SimpleNamespace(impath="b.png", label=1)])
    assert images_per_class(repeated) == {"fewest": 1, "most": 1}


def test_an_unknown_trainer_is_named_with_the_nearest(cfg):
    cfg.TRAINER.NAME = "LinearProb"
    with pytest.raises(UserError, match=r"TRAINER\.NAME .* \(did you mean 'LinearProbe'\?\)"):
        build_trainer(cfg)


def test_training_with_unlabelled_images_needs_dassl():
    class Paired(engine.TrainerXU):
        def __init__(self):
            pass

    with pytest.raises(UserError, match=r"^Paired trains on labelled and unlabelled"):
        Paired().run_epoch()


@pytest.mark.parametrize("loader", ["test_loader", "train_loader_x"])
def test_a_host_s_own_test_loop_is_recorded_if_it_counts_the_test_images(cfg, caplog, loader):
    class OwnLoop(TRAINER_REGISTRY.get("LinearProbe")):
        def test(self, split=None):
            self.set_model_mode("eval")
            self.evaluator.reset()
            for batch in getattr(self, loader):
                images, labels = self.parse_batch_test(batch)
                self.evaluator.process(self.model_inference(images), labels)
            return self.evaluator.evaluate()["accuracy"]

    cfg.OPTIM.MAX_EPOCH, folder = 1, Path(cfg.OUTPUT_DIR)
    trainer = OwnLoop(cfg)
    trainer.train()
    assert not (folder / "predictions.csv").exists()
    if loader == "train_loader_x":
        assert not (folder / "results.json").exists()
        assert "gives its evaluator 16 images, and the test set has" in caplog.text
        return
    found = read_results(folder)
    assert found["total"] == len(trainer.dm.dataset.test) and found["after_training"]
    cfg.OUTPUT_DIR = str(folder / "again")
    Path(cfg.OUTPUT_DIR).mkdir()
    usual = build_trainer(cfg)
    usual.load_model(str(folder), epoch=1)
    usual.test()
    assert found["accuracy"] == read_results(folder / "again")["accuracy"]
    trainer.test(split="val")
    assert read_results(folder) == found


# ---------------------------------------------------------------------- tests of a trained model
@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("INPUT", "INTERPOLATION", "nearest"),
        ("INPUT", "PIXEL_MEAN", [0.0, 0.0, 0.0]),
        ("MODEL.BACKBONE", "NAME", "other"),
        ("TRAINER.OWNLOADING", "SCALE", 2.0),
        ("TRAINER.LINEARPROBE", "SCALE", 2.0),  # of the trainer it derives from
    ],
)
def test_a_model_is_tested_with_the_settings_of_its_training(
    cfg, tmp_path, capsys, section, key, value
):
    class OwnLoading(TRAINER_REGISTRY.get("LinearProbe")):
        def load_model(self, directory, epoch=None):  # as CoOp's, it calls no method of the base
            path = Path(directory, "linear", f"model.pth.tar-{epoch}")
            self.model.load_state_dict(load_checkpoint(path)["state_dict"])

    for node in ("OWNLOADING", "LINEARPROBE", "OTHER"):
        cfg.TRAINER[node] = CfgNode({"SCALE": 1.0})
    cfg.OPTIM.MAX_EPOCH, folder = 1, cfg.OUTPUT_DIR
    OwnLoading(cfg).train()
    cfg.OUTPUT_DIR = str(tmp_path / "test")
    cfg.OPTIM.LR, cfg.INPUT.TRANSFORMS, cfg.TRAINER.OTHER.SCALE = 1.0, ("normalize",), 3.0
    cfg.SEED += 1
    OwnLoading(cfg).load_model(folder, epoch=1)
    assert "Note: the model was trained with SEED " in capsys.readouterr().out
    reduce(getitem, section.split("."), cfg)[key] = value
    with pytest.raises(UserError, match=rf"was trained with other settings: {section}\.{key} was"):
        OwnLoading(cfg).load_model(folder, epoch=1)
    Path(folder, "config.yaml").unlink()  # as of Dassl
    OwnLoading(cfg).load_model(folder, epoch=1)


def test_other_settings_are_told_before_other_shapes(cfg):
    class OfAnyWidth(TRAINER_REGISTRY.get("LinearProbe")):
        def load_model(self, directory, epoch=None):
            path = Path(directory, "linear", f"model.pth.tar-{epoch}")
            nn.Linear(self.cfg.TRAINER.OFANYWIDTH.WIDTH, 1).load_state_dict(load_checkpoint(path))

    cfg.TRAINER.OFANYWIDTH, cfg.OPTIM.MAX_EPOCH = CfgNode({"WIDTH": 1}), 1
    OfAnyWidth(cfg).train()
    with pytest.raises(RuntimeError, match="loading state_dict"):  # of the host, with its trace
        OfAnyWidth(cfg).load_model(cfg.OUTPUT_DIR, epoch=1)
    cfg.TRAINER.OFANYWIDTH.WIDTH = 2
    with pytest.raises(UserError, match=r"trained with other settings: TRAINER\.OFANYWIDTH\.WIDTH"):
        OfAnyWidth(cfg).load_model(cfg.OUTPUT_DIR, epoch=1)

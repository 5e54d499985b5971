"""``TRAIN.LOGGERS``: csv and Weights & Biases beside TensorBoard, also after a resumed training."""

from __future__ import annotations

import csv
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from anchoropt_plugin import UserError
from anchoropt_plugin.config.check import check_values
from anchoropt_plugin.dassl_compat.scalar_writers import SCALARS
from dassl.engine import build_trainer
from dassl.utils import set_random_seed


def run(cfg, stop_at=None):
    """Train; return what was written, and stop in the middle of an epoch if asked to."""
    set_random_seed(cfg.SEED)
    trainer = build_trainer(cfg)
    write_scalar, written = trainer.write_scalar, []

    def noted(tag, value, step=None):
        if (trainer.epoch, getattr(trainer, "batch_idx", None)) == stop_at:
            raise KeyboardInterrupt
        epoch = "" if trainer.is_trained else str(trainer.epoch + 1)
        written.append([epoch, str(step), tag, float(value)])
        write_scalar(tag, value, step)

    trainer.write_scalar = noted
    if stop_at is None:
        trainer.train()
    else:
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
    return written


def rows(cfg):
    with Path(cfg.OUTPUT_DIR, SCALARS).open(newline="") as file:
        header, *found = csv.reader(file)
    assert header == ["epoch", "step", "name", "value"]
    return [[epoch, step, name, float(value)] for epoch, step, name, value in found]


@pytest.mark.parametrize("stop_at", [(0, 2), (2, 1), (3, 0)])
def test_the_csv_file_has_each_scalar_once_also_after_a_kill(cfg, tmp_path, stop_at):
    cfg.TRAIN.LOGGERS = ("csv",)
    cfg.TEST.FINAL_MODEL = "best_val"
    written = run(cfg)
    assert rows(cfg) == written
    assert {row[2] for row in written} >= {"train/loss", "train/lr", "val/accuracy"}
    assert [row[0] for row in written if row[2] == "test/accuracy"] == [""]
    assert not Path(cfg.OUTPUT_DIR, "tensorboard").exists()

    cfg.OUTPUT_DIR = str(tmp_path / "killed")
    cfg.TRAIN.CHECKPOINT_FREQ = 1
    run(cfg, stop_at)
    path = Path(cfg.OUTPUT_DIR, SCALARS)
    path.write_text(path.read_text() + "4,1")  # a full disk cut a row
    run(cfg)
    assert rows(cfg) == written
    run(cfg)  # tests once more
    assert len(rows(cfg)) == len(written)


def test_weights_and_biases_continues_its_run(cfg, monkeypatch):
    started, logged, axes = [], [], {}

    def init(**arguments):
        started.append(arguments)
        return SimpleNamespace(
            define_metric=lambda name, **how: axes.update({name: how}),
            log=logged.append,
            finish=lambda: logged.append("finished"),
        )

    module = SimpleNamespace(init=init, Image=lambda image: image, Settings=dict)
    module.__spec__ = ModuleSpec("wandb", None)
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    monkeypatch.setenv("WANDB_NAME", "mine")
    cfg.TRAIN.LOGGERS = ("tensorboard", "wandb")
    cfg.OPTIM.MAX_EPOCH = 2
    written = run(cfg)
    wanted = [{row[2]: row[3], f"{row[2].split('/')[0]}/step": int(row[1])} for row in written]
    assert logged == [*wanted, "finished"]
    assert axes == {
        "train/step": {"hidden": True},
        "train/*": {"step_metric": "train/step"},
        "test/step": {"hidden": True},
        "test/*": {"step_metric": "test/step"},
    }
    assert list(Path(cfg.OUTPUT_DIR, "tensorboard").iterdir())
    trainer = build_trainer(cfg)
    trainer.train()
    first, second = started
    assert first == second, "the same id"
    assert (first["name"], first["project"]) == ("mine", "anchoropt-plugin")
    assert first["resume"] == "allow" and first["config"]["OPTIM.LR"] == 0.1
    trainer._writer.add_image("anchoropt/position", torch.eye(2), 1, dataformats="HW")
    assert logged[-1]["anchoropt/position"].getpixel((1, 1)) == 255


@pytest.mark.parametrize("loggers", [(), ("csv",)])
def test_images_go_to_the_writers_that_show_images(cfg, loggers):
    cfg.TRAIN.LOGGERS = loggers
    trainer = build_trainer(cfg)
    trainer.before_train()
    trainer._writer.add_image("anchoropt/position", torch.eye(2), 1, dataformats="HW")
    trainer.write_scalar("train/loss", 0.5, 0)
    trainer.close_writer()
    written = rows(cfg) if Path(cfg.OUTPUT_DIR, SCALARS).exists() else []
    assert written == [["1", "0", "train/loss", 0.5]] * len(loggers)


def test_unknown_loggers(cfg):
    cfg.TRAIN.LOGGERS = ("tensorbord",)
    with pytest.raises(UserError, match="must be a list of tensorboard, csv, wandb"):
        check_values(cfg)
    with pytest.raises(UserError, match=r"has 'tensorbord' \(did you mean 'tensorboard'\?\)"):
        build_trainer(cfg)  # another train.py checks no values

"""``TRAIN.PATIENCE``: a training ends when its validation stops improving, also if resumed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from anchoropt_plugin import UserError
from dassl.engine import build_trainer
from dassl.utils import load_checkpoint, set_random_seed

RESULTS = [50.0, 80.0, 70.0, 80.0, 79.0, 90.0, 95.0, 10.0]
"""The validation of each epoch. With a patience of 3, epoch 5 is the last one; with 4, all are run.
"""


def run(cfg, monkeypatch, stop_after=None):
    """Train with these validation results; return the trainer."""
    cfg.TEST.FINAL_MODEL = "best_val"
    cfg.OPTIM.MAX_EPOCH = len(RESULTS)
    set_random_seed(cfg.SEED)
    trainer = build_trainer(cfg)
    test, after_epoch = trainer.test, trainer.after_epoch

    def tested(split=None):
        return RESULTS[trainer.epoch] if split == "val" else test(split)

    def stop():
        after_epoch()
        if trainer.epoch + 1 == stop_after:
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "test", tested)
    monkeypatch.setattr(trainer, "after_epoch", stop)
    if stop_after is None:
        trainer.train()
    else:
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
    return trainer


@pytest.mark.parametrize(
    ("patience", "last", "best"), [(1, 3, 2), (2, 4, 2), (3, 5, 2), (4, 8, 7), (0, 8, 7)]
)
def test_the_last_epoch(cfg, monkeypatch, capsys, patience, last, best):
    cfg.TRAIN.PATIENCE = patience
    trainer = run(cfg, monkeypatch)
    folder = Path(cfg.OUTPUT_DIR, "linear")
    assert len(trainer.rates) == 4 * last
    assert (folder / "checkpoint").read_text() == f"model.pth.tar-{last}\n"
    assert load_checkpoint(folder / "model-best.pth.tar")["epoch"] == best
    said = capsys.readouterr().out
    line = f"Stop early: no epoch after epoch {best} was better in validation\nFinish training\n"
    assert (line in said) == (last < len(RESULTS))

    again = run(cfg, monkeypatch)  # a finished run is tested again, not continued
    told = f"All {len(RESULTS)} epochs are finished: nothing is trained, only tested"
    assert (told in capsys.readouterr().out) == (last == len(RESULTS))
    assert not again.rates
    assert torch.equal(again.model[2].weight, trainer.model[2].weight)


@pytest.mark.parametrize("frequency", [0, 1, 2])
@pytest.mark.parametrize("stop_after", [1, 2, 3, 4, 5])
def test_a_resumed_run_ends_as_an_undisturbed_one(
    cfg, monkeypatch, tmp_path, frequency, stop_after
):
    cfg.TRAIN.PATIENCE, cfg.TRAIN.CHECKPOINT_FREQ = 3, frequency
    whole = run(cfg, monkeypatch)
    results = json.loads(Path(cfg.OUTPUT_DIR, "results.json").read_text())
    cfg.OUTPUT_DIR = str(tmp_path / "killed")
    run(cfg, monkeypatch, stop_after)
    resumed = run(cfg, monkeypatch)
    assert torch.equal(resumed.model[2].weight, whole.model[2].weight)
    assert json.loads(Path(cfg.OUTPUT_DIR, "results.json").read_text()) == results
    assert Path(cfg.OUTPUT_DIR, "linear", "model.pth.tar-5").exists()


def test_patience_needs_a_validation(cfg):
    cfg.TRAIN.PATIENCE = 3
    trainer = build_trainer(cfg)
    with pytest.raises(UserError, match="PATIENCE is 3, but the run does not validate its epochs"):
        trainer.train()
    trainer.cfg.TEST.FINAL_MODEL = "best_val"
    trainer.val_loader = None
    with pytest.raises(UserError, match="no validation images"):
        trainer.train()
    assert not trainer.rates and not Path(cfg.OUTPUT_DIR).exists()

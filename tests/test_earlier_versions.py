"""What an earlier version wrote still loads: a run's folder, its checkpoint, cached anchors.

``tests/earlier`` was written by commit e24835c, with torch 2.14.1 on the CPU, by the command
``COMMAND`` with 3 epochs. That version's own tests of the checkpoint gave ``CORRECT``.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch

import train
from anchoropt_plugin import AnchorTokens, TextTower, load_clip, load_predictor
from anchoropt_plugin.method import descriptions
from anchoropt_plugin.method.anchor_learning import StageOne
from anchoropt_plugin.training import anchor_cache
from anchoropt_plugin.training.run_record import read_history

EARLIER = Path(__file__).parent / "earlier"
ROOT = Path(train.__file__).parent
CORRECT = {"base": 222, "new": 230}


@pytest.fixture
def command(tmp_path, monkeypatch):
    """The words of the command, and a copy of the folder it wrote."""
    monkeypatch.setenv("ANCHOROPT_CACHE", str(shutil.copytree(EARLIER / "anchors", tmp_path / "a")))
    shutil.copytree(EARLIER / "base", tmp_path / "base")

    def words(folder, classes, *flags):
        return [
            *("--root", str(tmp_path / "data"), "--trainer", "CoOp_AnchorOPT", "--seed", "1"),
            *("--dataset-config-file", str(ROOT / "configs/datasets/digits.yaml")),
            *("--config-file", str(ROOT / "configs/trainers/CoOp/tiny.yaml"), *flags),
            *("--output-dir", str(tmp_path / folder), "DATASET.SUBSAMPLE_CLASSES", classes),
            *("DATASET.NUM_SHOTS", "2", "OPTIM.MAX_EPOCH", "3"),
            *("TRAINER.ANCHOROPT.ANCHOR_EPOCHS", "5"),
        ]

    return words


def correct(log):
    return int(re.findall(r"^\* correct: (\d+)$", log.replace(",", ""), re.MULTILINE)[-1])


@pytest.mark.parametrize("classes", CORRECT)
def test_a_checkpoint_gives_the_same_accuracy(command, tmp_path, classes):
    flags = "--eval-only", "--model-dir", str(tmp_path / "base"), "--load-epoch", "3"
    assert train.main(command("test", classes, *flags)) == 0
    assert correct((tmp_path / "test/log.txt").read_text()) == CORRECT[classes]


def test_a_run_resumes_in_its_folder(command, tmp_path):
    before = torch.load(EARLIER / "base/prompt_learner/model.pth.tar-3", weights_only=False)
    assert train.main(command("base", "base")) == 0
    log = (tmp_path / "base/log.txt").read_text()
    assert "Previous epoch: 3" in log and correct(log) == CORRECT["base"]
    # Two epochs more: the optimiser's and the scheduler's state are taken up.
    words = [word if word != "3" else "5" for word in command("base", "base")]
    (tmp_path / "base/config.yaml").write_text(
        (tmp_path / "base/config.yaml").read_text().replace("MAX_EPOCH: 3", "MAX_EPOCH: 5")
    )
    assert train.main(words) == 0
    after = torch.load(tmp_path / "base/prompt_learner/model.pth.tar-5", weights_only=False)
    new = {"anchoropt.relaxation", "anchoropt.pooling"}
    assert after["state_dict"].keys() == before["state_dict"].keys() | new
    assert [entry["epoch"] for entry in read_history(tmp_path / "base/position.jsonl")] == [
        *range(1, 6)
    ]


def test_a_predictor_loads_it():
    import trainers  # noqa: F401  (registers the trainers)

    predict = load_predictor(EARLIER / "base")
    assert predict.classes == ("zero", "one", "two", "three", "four")


def test_cached_anchors_are_found_by_their_key(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.14.1+cu130")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    (path,) = (EARLIER / "anchors").iterdir()
    anchors = AnchorTokens.load(path)
    names = ["zero", "one", "two", "three", "four"]
    texts = descriptions.read(ROOT / "configs/descriptions/digits.json", names, 10)
    settings = StageOne(epochs=5, steps=1, mse_weight=1000.0)
    key = anchor_cache.content_key(TextTower(load_clip("tiny")), names, texts, settings)
    assert anchors.key == key == path.name.removesuffix(".pth.tar")
    assert torch.equal(
        anchor_cache.get(EARLIER / "anchors", key, (1, 128)).values,
        AnchorTokens.load(EARLIER / "base").values,
    )

"""``predictions.csv`` of a test against a plain computation, image by image."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from anchoropt_plugin import UserError
from anchoropt_plugin.dassl_compat.evaluation.label_check import LabelCheck
from anchoropt_plugin.dassl_compat.evaluation.top_classes import TopClasses, paths_of
from anchoropt_plugin.files.predictions import PREDICTIONS, read_predictions
from anchoropt_plugin.files.run_events import read_results
from dassl.engine import TRAINER_REGISTRY, build_trainer
from tests.dassl_compat.conftest import CLASSES


@pytest.fixture
def trainer(cfg):
    Path(cfg.OUTPUT_DIR).mkdir(parents=True)
    return build_trainer(cfg)


@pytest.mark.parametrize("sampler", ["SequentialSampler", "RandomSampler"])
def test_a_test_writes_what_the_evaluator_counts(cfg, sampler):
    cfg.DATALOADER.TEST.SAMPLER = sampler
    Path(cfg.OUTPUT_DIR).mkdir(parents=True)
    trainer = build_trainer(cfg)
    trainer.test()
    found = read_predictions(Path(cfg.OUTPUT_DIR, PREDICTIONS))
    assert sorted(found.images) == sorted(item.impath for item in trainer.dm.dataset.test)
    for number, item in enumerate(trainer.dm.dataset.test):
        place = found.images.index(item.impath)
        image = trainer.test_loader.dataset[number]["img"]
        with torch.no_grad():
            probabilities = trainer.model(image[None])[0].double().softmax(0)
        order = sorted(range(3), key=lambda label: -probabilities[label])
        assert found.truth[place] == item.classname
        assert found.top[place] == [CLASSES[label] for label in order]
        assert found.probability[place] == pytest.approx(float(probabilities.max()), rel=1e-5)
    right = sum(top[0] == name for top, name in zip(found.top, found.truth, strict=True))
    assert right == read_results(cfg.OUTPUT_DIR)["correct"]


@pytest.mark.parametrize("host", ["OtherImages", "OtherClasses"])
def test_labels_that_are_not_the_loaders_are_refused(cfg, host):
    def parse_batch_test(self, batch):
        if host == "OtherImages":
            return batch["img"].flip(0), batch["label"].flip(0)
        return batch["img"], 2 - batch["label"]

    members = {"parse_batch_test": parse_batch_test}
    TRAINER_REGISTRY.register(force=True)(
        type(host, (TRAINER_REGISTRY.get("LinearProbe"),), members)
    )
    cfg.TRAINER.NAME = host
    Path(cfg.OUTPUT_DIR).mkdir(parents=True)
    with pytest.raises(UserError, match=f"parse_batch_test of {host} returns other labels"):
        build_trainer(cfg).test()
    assert not list(Path(cfg.OUTPUT_DIR).iterdir())


def test_labels_that_cannot_be_compared_or_are_equal_are_no_error(cfg):
    check = LabelCheck("Host")
    images, labels = torch.zeros(2, 3, 8, 8), torch.tensor([0, 1])
    batch = {"img": images, "label": labels}
    check.add(batch, (images, labels.int()))
    check.add(batch, (images, torch.tensor([5, 9]), labels.clone()))  # numbers of the images
    check.add(batch, (images, labels.repeat(2)))
    check.add({"img": images}, (images, labels.flip(0)))
    check.add([images, labels], (images, labels.flip(0)))
    check.add(batch, images)
    check.settle()


def test_a_validation_writes_nothing_and_a_training_removes_what_is_there(trainer, cfg):
    file = Path(cfg.OUTPUT_DIR, PREDICTIONS)
    trainer.test(split="val")
    assert not file.exists()
    trainer.test()
    assert file.exists()
    cfg.TEST.NO_TEST = True
    build_trainer(cfg).train()
    assert not file.exists()


def test_of_equal_probabilities_the_evaluators_prediction_is_first():
    logits = torch.zeros(4, 40)
    logits[1, 7:] = 3  # more ties than classes of a line
    logits[2, [5, 30]] = 2
    logits[3, 8] = 60  # a probability of 1
    top = TopClasses()
    top.add(list("abcd"), logits.half(), torch.arange(4))
    names = {label: f"n{label}" for label in range(39)}
    rows = list(top.rows(names))
    assert [row[0] for row in rows] == list("abcd")
    assert [row[1] for row in rows] == ["n0", "n1", "n2", "n3"]
    for (_, _, likely, values), row in zip(rows, logits, strict=True):
        assert likely[0] == names[int(row.argmax())]
        assert len(set(likely)) == len(values) == 5
        assert list(values) == pytest.approx(row.double().softmax(0).sort().values[-5:].flip(0))
    assert {*rows[2][2][:2]} == {"n5", "n30"}


def test_classes_that_share_a_name_and_labels_without_a_name(tmp_path):
    top = TopClasses()
    top.add(["a", "b", "c"], torch.eye(3), torch.tensor([2, 1, 0]))
    top.write(str(tmp_path), {0: "crane", 1: "crane"})
    found = read_predictions(tmp_path / PREDICTIONS)
    assert found.truth == ["label 2", "crane (label 1)", "crane (label 0)"]
    assert [names[0] for names in found.top] == ["crane (label 0)", "crane (label 1)", "label 2"]


def test_a_loader_of_ones_own_may_give_no_paths():
    assert paths_of({"img": torch.zeros(2, 1)}, 2) == paths_of([torch.zeros(2, 1)], 2) == ["", ""]
    assert paths_of({"impath": ["x.png"]}, 1) == [str(Path("x.png").absolute())]


def test_a_host_may_give_probabilities():
    torch.manual_seed(0)
    logits, names = 9 * torch.randn(4, 3), {0: "x", 1: "y", 2: "z"}
    rows = []
    for output in (logits, logits.softmax(-1)):
        top = TopClasses()
        top.add(["a", "b", "c", "d"], output, torch.tensor([0, 1, 2, 0]))
        rows.append([*top.rows(names)])
    for (*ours, ps), (*theirs, qs) in zip(*rows, strict=True):
        assert ours == theirs and list(ps) == pytest.approx(list(qs), abs=1e-5)

"""The evaluator against scikit-learn, and its lines against the public log parser's patterns."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

from anchoropt_plugin import UserError
from dassl.config import get_cfg_default
from dassl.evaluation import build_evaluator


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg_default()
    cfg.OUTPUT_DIR = str(tmp_path)
    return cfg


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1500, 9, generator=generator)
    labels = torch.randint(0, 7, (1500,), generator=generator)  # two classes are never seen
    logits[torch.arange(1500), labels] += 1.5
    return list(zip(logits.split(400), labels.split(400), strict=True))


def evaluate(cfg, batches, **kwargs):
    evaluator = build_evaluator(cfg, **kwargs)
    evaluator.process(torch.ones(2, 9), torch.zeros(2, dtype=torch.long))
    evaluator.reset()
    for logits, labels in batches:
        evaluator.process(logits, labels)
    return evaluator.evaluate()


def plain(batches):
    true = torch.cat([labels for _, labels in batches]).numpy()
    return true, torch.cat([logits for logits, _ in batches]).numpy().argmax(1)


def test_results_equal_scikit_learn(cfg, batches):
    results = evaluate(cfg, batches)
    true, predicted = plain(batches)
    macro_f1 = f1_score(true, predicted, average="macro", labels=np.unique(true))
    assert list(results) == ["accuracy", "error_rate", "macro_f1"]
    assert results["accuracy"] == pytest.approx(100 * accuracy_score(true, predicted))
    assert results["error_rate"] == pytest.approx(100 - results["accuracy"])
    assert results["macro_f1"] == pytest.approx(100 * macro_f1)


def test_lines(cfg, batches, capsys):
    results = evaluate(cfg, batches)
    lines = capsys.readouterr().out.splitlines()[-6:]
    assert lines[:2] == ["=> result", "* total: 1,500"]
    assert re.fullmatch(r"\* correct: [\d,]+", lines[2])
    for name, line in zip(("accuracy", "error", "macro_f1"), lines[3:], strict=True):
        found = re.search(rf"\* {name}: ([\.\deE+-]+)%", line)  # the public parser's pattern
        wanted = results["error_rate" if name == "error" else name]
        assert float(found.group(1)) == pytest.approx(wanted, abs=0.051)


def test_result_of_each_class(cfg, batches, capsys):
    cfg.TEST.PER_CLASS_RESULT = True
    results = evaluate(cfg, batches, lab2cname={label: f"class {label}" for label in range(9)})
    true, predicted = plain(batches)
    recalls = [100 * np.mean(predicted[true == label] == label) for label in range(7)]
    assert results["perclass_accuracy"] == pytest.approx(np.mean(recalls))
    out = capsys.readouterr().out
    assert f"* class: 3 (class 3)\ttotal: {(true == 3).sum()}\t" in out
    assert f"* average: {np.mean(recalls):.1f}%" in out


def test_confusion_matrix(cfg, batches, tmp_path):
    cfg.TEST.COMPUTE_CMAT = True
    evaluate(cfg, batches)
    found = torch.load(tmp_path / "cmat.pt", weights_only=True).numpy()
    assert np.allclose(found, confusion_matrix(*plain(batches), normalize="true"))


def test_nothing_to_evaluate(cfg):
    with pytest.raises(UserError, match="no images"):
        build_evaluator(cfg).evaluate()
    cfg.TEST.EVALUATOR = "classification"
    with pytest.raises(UserError, match=r"did you mean 'Classification'"):
        build_evaluator(cfg)

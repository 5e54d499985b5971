"""``scripts/compare.py`` on small copies of all fifteen public data sets, in their real formats."""

from __future__ import annotations

import pandas as pd

from anchoropt_plugin.experiments import compare
from tests.datasets.small_datasets import NAMES, published_split, write_small


def test_compare_reads_every_public_data_set(tmp_path, monkeypatch):
    n_tested = {}
    for name in NAMES:
        parts = write_small(tmp_path / "data", name)
        n_tested[name] = len(published_split(parts)["test"])
    # Only a preset can skip zero-shot CLIP, which would read each data set again.
    (tmp_path / "small.yaml").write_text("hosts: [CoOp]\nconfig: tiny\nzero_shot: false\n")
    monkeypatch.setattr(compare, "PRESETS", tmp_path)
    out = tmp_path / "out"
    tested = {}
    for protocol in ("cross_dataset", "domain_generalization"):  # both train on ImageNet
        words = ["--preset", "small", "--protocol", protocol, "--seeds", "1", "--shots", "1"]
        words += ["--anchoropt", "without", "--jobs", "2"]
        words += ["--root", str(tmp_path / "data"), "--output-dir", str(out)]
        keys = ["OPTIM.MAX_EPOCH", "1", "DATALOADER.NUM_WORKERS", "0", "USE_CUDA", "False"]
        assert compare.main("", [*words, *keys]) == 0
        table = pd.read_csv(out / "results.csv")
        tested |= dict(zip(table["DATASET.NAME"], table["total"], strict=True))
    assert tested == n_tested
    trainings = list(out.rglob("prompt_learner/checkpoint"))
    assert len(trainings) == 1 and len(list(out.rglob("log.txt"))) == len(NAMES)

"""Bounds of memory and numbers of calls for large inputs; nothing here measures time."""

from __future__ import annotations

import os

import pytest
import torch
import yaml
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from anchoropt_plugin.datasets.class_folders import read_classnames
from anchoropt_plugin.encoders import clip_models
from anchoropt_plugin.encoders.clip_models import tokenize
from anchoropt_plugin.encoders.openai_clip import clip as openai_clip
from anchoropt_plugin.encoders.text_tower import TextTower
from anchoropt_plugin.experiments import checkout, compare, results
from anchoropt_plugin.experiments.plan import plan
from anchoropt_plugin.experiments.protocols import read_protocol
from anchoropt_plugin.method import anchor_learning, anchor_prompts
from anchoropt_plugin.method.anchor_prompts import AnchorPrompts
from benchmarks import load, load_cases
from benchmarks.load import Measured
from dassl.config import get_cfg_default
from dassl.evaluation import build_evaluator


class Largest(TorchDispatchMode):
    """Record the number of elements of the largest tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self.numel = max([self.numel, *sizes])
        return out


# ---------------------------------------------------------------------- classes
@pytest.mark.parametrize("matrix", [False, True])
def test_an_evaluation_takes_no_square_of_the_classes(tmp_path, matrix):
    cfg = get_cfg_default()
    cfg.OUTPUT_DIR, cfg.TEST.COMPUTE_CMAT, cfg.TEST.PER_CLASS_RESULT = str(tmp_path), matrix, True
    evaluator = build_evaluator(cfg)
    n_classes, n_images = 3000, 20
    evaluator.process(torch.eye(n_classes)[-n_images:], torch.arange(n_images))
    with Largest() as largest:
        evaluator.evaluate()
    assert largest.numel <= max(n_classes, (2 * n_images) ** 2)


def test_anchor_prompts_in_chunks_give_the_same_and_save_less(clip, monkeypatch):
    prompts = AnchorPrompts(TextTower(clip), [f"cat {n}" for n in range(40)], 2)
    upstream = torch.randn(40, 32)
    values = torch.randn(2, 64) * 0.02
    found = []
    for chunk in (40, 7):
        monkeypatch.setattr(anchor_prompts, "CHUNK", chunk)
        saved, leaf = [], values.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, saved=saved: saved.append(x.nbytes) or x, lambda x: x
        ):
            features = prompts.encode(leaf)
        features.backward(upstream)
        found.append((features, leaf.grad, sum(saved)))
    (features, gradient, bytes_at_once), (chunked, its_gradient, bytes_in_chunks) = found
    torch.testing.assert_close(chunked, features)
    torch.testing.assert_close(its_gradient, gradient, rtol=1e-4, atol=1e-5)
    assert bytes_in_chunks < bytes_at_once / 20


def test_class_folders_are_gone_through_once(tmp_path):
    class Folders(list):
        passes = 0

        def __iter__(self):
            self.passes += 1
            return super().__iter__()

        def __contains__(self, name):
            self.passes += 1
            return super().__contains__(name)

    folders = Folders(f"n{number} of many" for number in range(50))
    (tmp_path / "classnames.txt").write_text("".join(f"{name} a cat\n" for name in folders))
    folders.passes = 0
    names = read_classnames(tmp_path / "classnames.txt", folders)
    assert names == dict.fromkeys(folders, "a cat") and folders.passes <= 2


# ---------------------------------------------------------------------- descriptions
def test_a_text_is_split_into_tokens_once(monkeypatch):
    texts = ["a photo of a Red_panda.", "", "ein Käfer &amp; more"]
    want = openai_clip.tokenize(texts)
    tokenizer, seen = clip_models._tokenizer(), []
    encode = type(tokenizer).encode
    monkeypatch.setattr(tokenizer, "encode", lambda t: seen.append(t) or encode(tokenizer, t))
    tokens = tokenize(texts)
    assert torch.equal(tokens, want) and tokens.dtype == torch.int64
    assert seen == texts


def test_features_of_descriptions_are_held_until_their_class_is_complete(clip, monkeypatch):
    tower, sizes = TextTower(clip), []
    monkeypatch.setattr(anchor_learning, "SENTENCES", 4)
    for n_classes in (4, 40):
        texts = [[f"cat {c}, view {m}." for m in range(1 + c % 3)] for c in range(n_classes)]
        with Largest() as largest:
            means, spread = anchor_learning._targets(tower, texts)
        sizes.append(largest.numel)
    whole = [F.normalize(clip.encode_text(tokenize(sentences)), dim=-1) for sentences in texts]
    torch.testing.assert_close(means, torch.stack([t.mean(0) for t in whole]))
    apart = torch.stack([(t - t.mean(0)).square().mean(0) for t in whole]).mean()
    torch.testing.assert_close(spread, apart, rtol=1e-3, atol=1e-6)
    assert sizes[1] < 1.5 * sizes[0]


# ---------------------------------------------------------------------- runs
@pytest.fixture
def finished(tmp_path):
    """Return the jobs of a comparison; all runs have results and a record."""
    protocol = read_protocol("base2new").with_changes({"datasets": ["dtd"], "seeds": [1]})
    jobs = plan(protocol, compare.methods_of(["CoOp"], "tiny", ["dtd"]), tmp_path, tmp_path, [])
    for run in (run for job in jobs for run in job.runs):
        results = {"total": 4, "correct": 3, "accuracy": 75.0, "macro_f1": 1.0}
        load_cases.leave(run, results)
    return jobs


def test_settings_of_a_run_are_read_once_unless_they_change(finished, monkeypatch):
    runs = [run for job in finished for run in job.runs]
    parsed, flattened = [], checkout.flattened
    checkout._defaults(checkout.CHECKOUT)  # flattened once in a process
    monkeypatch.setattr(checkout, "flattened", lambda there: parsed.append(1) or flattened(there))
    for _ in range(3):
        assert all(results.outcome(run) for run in runs)
    assert len(parsed) == len(runs)
    record = runs[0].folder / "config.yaml"
    changed = record.stat().st_mtime_ns + 1
    record.write_text(record.read_text().replace("SEED: 1", "SEED: 2"))
    os.utime(record, ns=(changed, changed))
    assert not results.outcome(runs[0]) and results.outcome(runs[1])


def test_settings_are_those_that_a_record_has(finished):
    for run in (run for job in finished for run in job.runs):
        there = yaml.safe_load((run.folder / "config.yaml").read_text())
        assert dict(checkout.flattened(there)) == {**run.settings, "OUTPUT_DIR": str(run.folder)}


# ---------------------------------------------------------------------- the command
def test_what_grows_too_fast_or_takes_too_much_is_a_fault():
    allowed = load_cases.Load(None, "classes", (10, 20), bytes_each=1000, bytes_more=0)
    found = [
        Measured(10, {"a": 1.0, "b": 0.1}, 9000, 5),
        Measured(20, {"a": 2.0, "b": 0.4}, 18000, 5),
    ]
    text, faults = load.table(allowed, found)
    assert faults == [] and "| a | 1 s | 2 s | 1.00 |" in text.splitlines()
    square = found[1]._replace(seconds={"a": 4.0, "b": 0.4}, memory=20001)
    faults = load.table(allowed, [found[0], square])[1]
    assert len(faults) == 2 and "'a' grows with the power 2.00" in faults[0]


@pytest.mark.parametrize(
    ("name", "size"), [("classes", 40), ("images", 60), ("descriptions", 20_000)]
)
def test_a_small_load(name, size, tmp_path, monkeypatch):
    monkeypatch.chdir(load.REPOSITORY)
    found = load.measure(name, size, tmp_path)
    assert all(seconds > 0 for seconds in found.seconds.values()) and len(found.seconds) > 1


def test_a_comparison_of_finished_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(load.REPOSITORY)
    for name, value in {"EPOCHS": 1, "SEEDS": 2, "OF_A_SET": 26}.items():
        monkeypatch.setattr(load_cases, name, value)
    parts = load_cases.many_runs(26, tmp_path)
    names = []
    with pytest.raises(StopIteration) as end:
        while True:
            names.append(next(parts))
    page = tmp_path / "compared" / "report.html"
    assert end.value.value == page.stat().st_size and len(names) == 3
    assert "26 runs, 26 of them finished; 0 to do" in capsys.readouterr().out
    # A figure for each data set, one of the training, one of the positions; seeds add no figure.
    assert page.read_text().count("<img ") == 3

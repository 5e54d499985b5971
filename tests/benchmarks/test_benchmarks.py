"""The benchmarks on a small CLIP: they run, they notice a wrong side, and their costs are right."""

from __future__ import annotations

import dataclasses
import json
import time

import pytest
import torch
from torch.utils.flop_counter import flop_registry

from anchoropt_plugin.encoders import feature_cache
from anchoropt_plugin.encoders.clip_models import tokenize
from anchoropt_plugin.encoders.equivalence import TOLERANCE
from anchoropt_plugin.encoders.fast_forward import FastForward
from anchoropt_plugin.encoders.feature_cache import CachedFeatures
from anchoropt_plugin.encoders.text_tower import TextTower
from anchoropt_plugin.method.anchor_prompts import AnchorPrompts
from benchmarks import (
    cost,
    evaluate,
    harness,
    image_tower,
    many_classes,
    plain,
    stage1,
    stage1_floor,
    tables,
    text_branch,
    train_step,
)
from benchmarks.cost import Sizes
from benchmarks.harness import Bench, Case
from trainers.prompted_clip import TextEncoder

SMALL = Sizes(32, 32, 2, 64, 8, 77, 49408, 64, 4, 2)
TEXT_BENCHMARKS = [text_branch, train_step, stage1, evaluate]
BENCHMARKS = [*TEXT_BENCHMARKS, image_tower]
WITHOUT_GRAPH = image_tower, evaluate
ONE_ROUND = ["--rounds", "1"]
QUICK = [*ONE_ROUND, "--classes", "4"]


@pytest.fixture(autouse=True)
def _quick_ceiling(monkeypatch):
    monkeypatch.setattr(Bench, "ceiling", lambda bench: 1e11)


def named(module):
    return module.__name__.rpartition(".")[2]


@pytest.fixture
def bench():
    return Bench(SMALL, rounds=1, seconds=9, classes=(4,))


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=named)
def test_both_sides_agree(benchmark, tmp_path, capsys, monkeypatch):
    # So small images are encoded in several parts, too.
    monkeypatch.setattr(feature_cache, "PART", 100_000)
    file = tmp_path / "out" / "results.json"
    arguments = ONE_ROUND if benchmark is image_tower else QUICK
    assert benchmark.main([*arguments, "--json", str(file)], SMALL) == 0
    assert "✗" not in capsys.readouterr().out
    results = json.loads(file.read_text(encoding="utf-8"))
    assert results["machine"]["dtype"] == "fp32" and results["machine"]["processor"]
    for row in results["rows"]:
        assert row["seconds"] > 0 and row["memory"] > 0 and row["flops"] > 0
        if row["side"] != "plain":
            assert row["faster"] > 0 and row["leaner"] > 1 and row["feature_error"] <= 1e-5
            assert benchmark in WITHOUT_GRAPH or row["gradient_error"] <= 1e-5


def test_very_many_classes_are_encoded_in_chunks(monkeypatch, capsys):
    monkeypatch.setattr(many_classes, "CHUNK", 2)
    sizes = []
    encode = TextTower.encode

    def recorded(self, prompts, eot, *more, **named):
        sizes.append(len(eot))
        return encode(self, prompts, eot, *more, **named)

    monkeypatch.setattr(TextTower, "encode", recorded)
    assert many_classes.main(QUICK, SMALL) == 0
    out = capsys.readouterr().out
    assert "4 classes, 2 at once" in out and "✗" not in out
    assert sizes[-4:] == [
        2,
        2,
        2,
        2,
    ]  # one step: forward, then again backward


@pytest.mark.parametrize("benchmark", TEXT_BENCHMARKS, ids=named)
def test_a_wrong_side_fails(benchmark, monkeypatch, capsys):
    encode = TextTower.encode

    def wrong(self, prompts, eot, *more, **named):
        return encode(self, prompts, eot, *more, **named) + 1e-4 * prompts.square().sum()

    monkeypatch.setattr(TextTower, "encode", wrong)
    monkeypatch.setitem(TOLERANCE, torch.float32, float("inf"))
    assert benchmark.main(QUICK, SMALL) == 1
    assert "✗ ours" in capsys.readouterr().out


@pytest.mark.parametrize("benchmark", TEXT_BENCHMARKS, ids=named)
def test_on_a_gpu_the_cut_way_is_also_compiled(benchmark, bench, monkeypatch):
    """Compilation itself is left out: after it, this process could fork no more."""
    compiled = []
    monkeypatch.setattr(TextEncoder, "compile", lambda encoder: compiled.append(encoder))
    gpu = torch.device("cuda")
    monkeypatch.setattr(benchmark, "cut_rivals", lambda *args: plain.cut_rivals(*args[:3], gpu))
    for number, case in enumerate(benchmark.cases(bench), 1):
        cut, again = case.rivals
        assert again.name == f"{cut.name}, compiled" and len(compiled) == number
        outcomes = []
        for side in (cut, again):
            torch.manual_seed(0)  # the position matrix is drawn
            outcomes.append(side.step())
        one, other = ([outcome.features, *outcome.gradients] for outcome in outcomes)
        assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))


def test_wrong_image_features_fail(monkeypatch, capsys):
    encode = CachedFeatures._encode
    monkeypatch.setattr(CachedFeatures, "_encode", lambda *args: 1.0001 * encode(*args))
    assert image_tower.main(ONE_ROUND, SMALL) == 1
    assert "✗ ours" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["--classes", "0"],
        ["--rounds", "0"],
        ["--seconds", "-1"],
        ["--device", "cuda"],
        ["--json", "{folder}"],
        ["--json", "{folder}/file/results.json"],
        ["--classses", "4"],
    ],
    ids=" ".join,
)
def test_a_wrong_argument_gives_one_line_before_anything_is_measured(
    arguments, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "file").touch()
    arguments = [argument.format(folder=tmp_path) for argument in arguments]
    assert text_branch.main(arguments, SMALL) == 2
    out, err = capsys.readouterr()
    assert not out and len(err.splitlines()) == 1 and arguments[0] in err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_benchmark_ends_if_the_fast_branch_is_not_in_use(monkeypatch):
    monkeypatch.setitem(TOLERANCE, torch.float32, -1.0)
    with pytest.raises(SystemExit, match="not in use"):
        text_branch.main(QUICK, SMALL)


def test_a_wrong_gradient_alone_fails(monkeypatch, bench):
    (case,) = text_branch.cases(bench)
    (ours,) = case.ours

    def wrong():
        outcome = ours.step()
        return outcome._replace(gradients=[g * 1.001 for g in outcome.gradients])

    first, _, row = bench.measure(case._replace(ours=[ours._replace(step=wrong)]))
    assert first.passed and row.feature_error <= 1e-5 and not row.passed


@pytest.mark.parametrize(("benchmark", "dtype"), [(train_step, "fp16"), (evaluate, "bf16")])
def test_half_precision_runs_and_shows_its_errors(benchmark, dtype, tmp_path):
    file = tmp_path / "results.json"
    assert benchmark.main([*QUICK, "--dtype", dtype, "--json", str(file)], SMALL) == 0
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    ours = [row for row in rows if row["side"].startswith("ours")]
    assert ours and all(1e-5 < row["feature_error"] < 0.1 for row in ours)


def test_a_fast_branch_without_a_shared_prefix_fails(monkeypatch, capsys):
    """Its features are right, but it computes more than the cost model says."""
    monkeypatch.setattr(FastForward, "_shared", lambda self, *given: (0, False))
    assert text_branch.main(QUICK, SMALL) == 1
    assert "compute more than" in " ".join(capsys.readouterr().out.split())


def test_the_floor_of_stage_one_is_its_matrix_products(capsys):
    side = stage1.stage_one(Bench(SMALL), 50).ours[0]
    products = stage1_floor.recorded(side.step)
    flops = sum(2 * x.shape[0] * weight.numel() for x, weight, _ in products)
    assert 0.6 * side.cost.flops < flops <= 1.25 * side.cost.flops
    assert sum(stage1_floor.shares(side.step).values()) == pytest.approx(1)
    assert stage1_floor.main([], SMALL) == 0
    assert "its matrix products alone" in capsys.readouterr().out


def test_a_case_without_a_plain_side_measures_ours_alone(bench):
    (case,) = text_branch.cases(bench)
    (row,) = bench.measure(case._replace(plain=None))
    assert row.side == "ours" and row.faster is None and row.passed


def test_a_long_plain_step_is_timed_once(bench):
    (case,) = text_branch.cases(bench)
    calls = {"plain": 0, "ours": 0}
    wait = 0.0

    def counted(side):
        def step():
            calls[side.name] += 1
            time.sleep(wait if side.name == "plain" else 0)
            return side.step()

        return side._replace(step=step)

    case = Case(case.name, counted(case.plain), [counted(side) for side in case.ours])
    dataclasses.replace(bench, rounds=3).measure(case)
    assert calls == {"plain": 1 + 3, "ours": 3 + 3 * harness.OURS_PER_ROUND}
    calls.update(plain=0, ours=0)
    wait = 2.1
    dataclasses.replace(bench, rounds=3, seconds=2).measure(case)
    assert calls["plain"] == 1 and calls["ours"] >= 3 + harness.OURS_PER_ROUND


def test_class_names_have_one_to_eight_tokens_and_three_on_average():
    names = plain.class_names(50)
    lengths = (tokenize(names).argmax(-1) - 1).tolist()
    assert (min(lengths), max(lengths), sum(lengths) / 50) == (1, 8, 3)
    assert names == plain.class_names(50)


@pytest.mark.skipif(
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu not in flop_registry,
    reason="this version of PyTorch counts no FLOPs of attention on the CPU",
)
@pytest.mark.parametrize("backward", [False, True])
def test_the_cost_model_agrees_with_counted_flops(backward, bench):
    clip = bench.clip()
    names = plain.class_names(4)
    prompts = AnchorPrompts(TextTower(clip), names, 1)
    plain_prompts = plain.PlainPrompts(clip, [f"of {name}" for name in names], 1, bench.device)
    encoder = plain.PlainTextEncoder(clip)
    context = bench.random(1, SMALL.width).requires_grad_(backward)

    def counted(work):
        with harness.flop_counter() as counter:
            out = work()
            if backward:
                out.sum().backward()
        return counter.get_total_flops()

    expected = cost.plain_text(SMALL, 4, backward).flops
    found = counted(lambda: encoder(plain_prompts(context), plain_prompts.tokens))
    assert found == pytest.approx(expected, rel=0.1)
    expected = cost.fast_text(SMALL, prompts.eot, prompts.n_shared, backward).flops
    assert counted(lambda: prompts.encode(context)) == pytest.approx(expected, rel=0.1)
    if not backward:
        images = bench.random(3, 3, 32, 32)
        expected = cost.image_tower(SMALL, 3).flops
        assert counted(lambda: clip.visual(images)) == pytest.approx(expected, rel=0.02)


def test_peak_memory_is_of_tensors_that_exist_together(bench):
    def step():
        for _ in range(3):
            a, b = torch.zeros(1 << 18), torch.zeros(1 << 18)  # a MiB each
            del a, b
        return harness.Outcome(torch.zeros(1))

    assert bench.observed(step).memory == pytest.approx(2 << 20, rel=0.01)


def test_tables_are_written_between_the_markers(tmp_path, capsys):
    page = tmp_path / "performance.md"
    page.write_text(
        "before\n<!-- tables -->\nold\n<!-- end of tables -->\nafter\n", encoding="utf-8"
    )
    assert tables.main([str(tmp_path / "results")], page) == 2
    (tmp_path / "results").mkdir()
    assert tables.main([str(tmp_path / "results")], page) == 1
    for benchmark in (stage1, text_branch):
        file = tmp_path / "results" / f"{named(benchmark)}.json"
        benchmark.main([*QUICK, "--json", str(file)], SMALL)
    capsys.readouterr()
    for _ in range(2):  # the second time nothing is added
        assert tables.main([str(tmp_path / "results")], page) == 0
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n<!-- tables -->\n\n## ")
    assert text.endswith("\n<!-- end of tables -->\nafter\n") and "old" not in text
    assert text.index("### Text branch") < text.index("### Stage 1")
    assert text.count("| ours |") == 2 and text.count("\n## ") == 1

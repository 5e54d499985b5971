"""The report of a GPU, its parts tried on the CPU."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from benchmarks import gpu, gpu_equality, launch_steps


def test_without_a_gpu_it_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    assert "--device cpu" in capsys.readouterr().err


def test_parts_come_in_order_until_time_is_up(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(gpu_equality, "HOSTS", ["CoOp"])
    monkeypatch.setattr(gpu, "profiled", lambda device: "profiled")
    monkeypatch.setattr(gpu, "output_of", lambda words, failures: " ".join(words))
    monkeypatch.setattr(gpu, "benchmarks", lambda *args: f"dtype {args[1]}")
    arguments = ["--device", "cpu", "--folder", str(tmp_path)]
    assert gpu.main(arguments) == 0
    out = capsys.readouterr().out
    words = ("test_cuda.py", "| bf16 |", "| CoOp_AnchorOPT | fp32 | 0", "loader.py", "dtype fp32")
    places = [out.index(word) for word in words]
    assert places == sorted(places) and "Skipped" not in out
    assert gpu.main([*arguments, "--seconds", "-1"]) == 0
    assert capsys.readouterr().out.count("Skipped") == 8


def test_what_differs_or_fails_is_a_fault(monkeypatch, tmp_path):
    failures = []
    monkeypatch.setattr(gpu_equality, "differences", lambda _: iter([("CoOp", "fp32", 0.5)]))
    gpu.equality("cuda", failures)
    gpu.output_of(["benchmarks/loader.py", "--epochs", "0"], failures)
    assert len(failures) == 2 and "--epochs" in failures[1]


@pytest.mark.parametrize(("precision", "largest"), gpu_equality.BRANCH_TOLERANCES.items())
def test_the_branch_differs_from_the_plain_way_by_rounding(precision, largest):
    features, gradients = gpu_equality.branch_difference(precision, "cpu")
    assert 0 < features < largest and 0 < gradients < largest


@pytest.mark.parametrize("side", launch_steps.SIDES)
def test_the_profiler_sees_the_second_step_alone(side):
    calls = gpu.calls_of_the_second_step(partial(launch_steps.text_branch, side, "cpu"))
    assert calls["aten::native_layer_norm"] == 25  # two a block, and the last one

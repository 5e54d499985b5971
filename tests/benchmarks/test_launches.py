"""Launches and waits of a step never grow: ``launch_bounds.json`` has what they are at most."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import estimate, launches
from benchmarks.launches import Row
from benchmarks.pretend_gpu import unavailable

BOUNDS = json.loads(Path(__file__).with_name("launch_bounds.json").read_text(encoding="utf-8"))
"""Of ours on a pretend GPU: step → [launches, waits]. Lower a bound where a count has fallen."""
ROOT = Path(launches.__file__).parents[1]


@pytest.mark.skipif(bool(unavailable()), reason=f"no pretend GPU: {unavailable()}")
def test_counts_are_what_the_bounds_say(tmp_path):
    file = tmp_path / "counts.json"
    # In a process of its own: a pretend GPU changes PyTorch.
    words = [sys.executable, "benchmarks/launches.py", "--sides", "ours", "--json", str(file)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    counts = {name: [*count] for name, _, *count in json.loads(file.read_text(encoding="utf-8"))}
    assert counts.keys() == BOUNDS.keys()
    other = {name: (counts[name], bound) for name, bound in BOUNDS.items() if counts[name] != bound}
    risen = {name: pair for name, pair in other.items() if pair[0][0] > pair[1][0]}
    risen |= {name: pair for name, pair in other.items() if pair[0][1] > pair[1][1]}
    assert not risen, f"step: ([launches, waits], bound): more than before: {risen}"
    fallen = {name: count for name, (count, _) in other.items()}
    assert not fallen, f"fewer than before: write these into launch_bounds.json: {fallen}"


def test_on_the_cpu_launches_are_counted_without_waits():
    (step,) = [step for step in launches.steps(["ours"]) if step[0] == "position matrix"]
    count = launches.counted(*step, on_gpu=False)
    assert count.launches == pytest.approx(BOUNDS["position matrix"][0], abs=5)
    assert count.waits is None


def test_a_table_has_a_column_for_each_side():
    rows = [Row("a", "plain", 1200, 3), Row("a", "ours", 10, None), Row("b", "ours", 7, 0)]
    lines = launches.table(rows).splitlines()
    assert lines[0] == "| a step | plain | ours |"
    assert lines[2:] == ["| a | 1,200 (3) | 10 |", "| b |  | 7 (0) |"]


def test_an_estimate_is_bound_by_launches_or_by_arithmetic():
    assert estimate.estimate(1000, 1, 1e12) == (1000 * estimate.LAUNCH, "L")
    assert estimate.estimate(1, 1e12, 1e12) == (2.0, "A")
    costs = estimate.costs(50)["text branch"]
    assert costs["plain"].flops > costs["cut"].flops > costs["ours"].flops
    steps = [(name, side) for name in estimate.costs(50) for side in ("plain", "cut", "ours")]
    lines = estimate.tables(dict.fromkeys(steps, 500)).splitlines()
    assert len(lines) == 2 + 2 * len(estimate.CLASSES)
    assert lines[2].startswith("| text branch | 50 | ") and "A |" in lines[-1]

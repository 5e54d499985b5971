"""Holm's correction against his procedure, step by step, and its place in the tables."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from anchoropt_plugin.experiments.formats import frame_of
from anchoropt_plugin.experiments.protocols import read_protocol
from anchoropt_plugin.experiments.significance import holm
from anchoropt_plugin.experiments.tables import tables


def rejected(ps, level):
    """Return the tests that Holm's procedure rejects at a level: the smallest p first, then on."""
    found = set()
    for rank, place in enumerate(np.argsort(ps, kind="stable")):
        if ps[place] > level / (len(ps) - rank):
            break
        found.add(int(place))
    return found


@pytest.mark.parametrize("seed", range(20))
def test_a_corrected_p_is_the_smallest_level_at_which_the_procedure_rejects(seed):
    rng = np.random.default_rng(seed)
    ps = [round(float(p), 3) for p in rng.uniform(size=rng.integers(1, 12)) ** 3]
    corrected = holm(ps)
    for level in np.arange(0.0005, 1, 0.001):  # between the multiples of 0.001
        assert rejected(ps, level) == {i for i, p in enumerate(corrected) if p <= level}
    assert all(p <= q <= 1 for p, q in zip(ps, corrected, strict=True))


def test_by_hand():
    assert holm([]) == [] and holm([0.2]) == [0.2]
    assert holm([0.01, 0.02, 0.03, 0.005]) == pytest.approx([0.03, 0.04, 0.04, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]


def made(methods):
    rng = np.random.default_rng(0)
    rows = [
        {
            **{"method": method, "reference": reference, "trainer": method, "group": "digits"},
            **{"score": score, "shots": 16, "seed": seed, "has_seeds": True},
            **{"accuracy": 50 + 10 * rng.uniform(), "MODEL.BACKBONE.NAME": "tiny"},
        }
        for score in ("base", "new")
        for method, reference in methods.items()
        for seed in range(1, 6)
    ]
    (table,) = tables(pd.DataFrame(rows), read_protocol("base2new"))
    return table


def test_the_tests_of_a_column_are_corrected_together():
    table = made({"a": "", "b": "a", "c": "a", "d": "b"})
    for column in table.columns:
        cells = [table.rows[method][column] for method in "bcd"]
        assert [cell.p_holm for cell in cells] == holm([cell.p for cell in cells])
        assert table.rows["a"][column].p_holm is None
    assert list(frame_of(table)[0]["Δ HM"].str.contains("Holm")) == [False, True, True, True]


def test_a_single_test_needs_no_correction():
    table = made({"a": "", "b": "a"})
    assert table.rows["b"]["HM"].p is not None and table.rows["b"]["HM"].p_holm is None
    assert not frame_of(table)[0]["Δ HM"].str.contains("Holm").any()

"""Tests of significance: a paired t-test, and Holm's correction for several tests."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from scipy import stats


def paired_p(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Return the p-value of the two-sided paired t-test; None if all differences are equal.

    >>> round(paired_p([2.0, 4.0, 6.5], [1.0, 2.0, 3.0]), 3)
    0.096
    >>> paired_p([2.0, 3.0], [1.0, 2.0]) is None  # the same difference twice: no deviation
    True
    """
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    if len(differences) < 2 or max(differences) - min(differences) < 1e-9:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # nearly equal differences
        return float(stats.ttest_rel(ours, theirs).pvalue)


def holm(ps: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number, in the same order.

    If the corrected values below 0.05 are called significant, the probability of calling any
    difference significant that is none is at most 0.05, whether the tests depend on each other or
    not.

    Source: Holm, "A simple sequentially rejective multiple test procedure" (Scandinavian Journal
    of Statistics 6, 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(ps)
    scaled = np.sort(ps) * np.arange(len(ps), 0, -1)
    corrected = np.empty(len(ps))
    corrected[order] = np.maximum.accumulate(scaled).clip(max=1.0)
    return corrected.tolist()

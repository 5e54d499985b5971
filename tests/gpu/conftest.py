"""Fixtures of the tests on a pretend GPU: ``gpu_*.py``, which run in processes of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.pretend_gpu import Record, pretend_gpu


@pytest.fixture
def gpu() -> Iterator[Record]:
    """The record of a pretend GPU that is there during the test."""
    with pretend_gpu() as record:
        yield record

"""Fixtures of all hosts' tests."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """Return the folder of the data sets, which the first run writes."""
    return tmp_path_factory.mktemp("data")

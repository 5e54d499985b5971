"""Set up tests and doctests: no GPU, one thread, a temporary anchor cache; leave nothing behind."""

from __future__ import annotations

import logging
import os
from unittest import mock

import pytest

# The tests compare with numbers of the CPU; `make gpu` runs those that need a GPU.
os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("ANCHOROPT_TEST_GPU", "")

import torch

import anchoropt_plugin  # noqa: F401  (makes `import dassl` work)

torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _own_anchor_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANCHOROPT_CACHE", str(tmp_path_factory.mktemp("anchors")))
        yield


@pytest.fixture(autouse=True)
def _nothing_left():
    handlers = logging.getLogger("anchoropt_plugin").handlers
    handlers.clear()  # of runs that a fixture of a module made
    with mock.patch.dict(os.environ):  # commands set what their processes need
        yield
    handlers.clear()

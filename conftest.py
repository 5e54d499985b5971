"""Set up tests and doctests: no GPU, one thread, a temporary anchor cache, a clean logger."""

from __future__ import annotations

import logging
import os

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
def _no_log_handlers_left():
    yield
    logging.getLogger("anchoropt_plugin").handlers.clear()

"""The tests on a pretend GPU, each file in a process of its own: a pretend GPU changes PyTorch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.pretend_gpu import unavailable

HERE = Path(__file__).parent
FILES = sorted(HERE.glob("gpu_*.py"))
SECONDS = 600

pytestmark = pytest.mark.skipif(bool(unavailable()), reason=f"no pretend GPU: {unavailable()}")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_passes_in_a_process_of_its_own(file):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-header"]
    done = subprocess.run(
        [*command, str(file)],
        cwd=HERE.parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout

"""A function in a fork of the server: it ends with its parent, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from anchoropt_plugin.experiments import fork_server
from anchoropt_plugin.experiments.checkout import CHECKOUT

SCRIPT = """
from pathlib import Path
from anchoropt_plugin.experiments.checkout import CHECKOUT
from anchoropt_plugin.experiments.fork_server import in_fork
from tests.experiments.test_fork_server import sleep
in_fork(CHECKOUT, sleep, Path({path!r}))
"""
LIMIT = 60


def sleep(path):
    """Write the number of this process, and stay."""
    path.with_suffix(".part").write_text(str(os.getpid()))
    path.with_suffix(".part").rename(path)
    time.sleep(10 * LIMIT)


def wait_until(is_so):
    end = time.monotonic() + LIMIT
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_fork_ends_when_its_parent_is_killed(tmp_path):
    path, root = tmp_path / "pid", Path(__file__).resolve().parents[2]
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT.format(path=str(path))]
    parent = subprocess.Popen(command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)})
    try:
        wait_until(path.exists)
        child = Path("/proc", path.read_text())
        assert child.exists()
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    wait_until(lambda: not child.exists())


def test_processes_are_no_forks_where_cuda_fails_in_forks(monkeypatch):
    assert fork_server.context_of(CHECKOUT).get_start_method() == "forkserver"
    uncached = fork_server._forks_have_cuda.__wrapped__
    monkeypatch.setattr(fork_server, "_forks_have_cuda", uncached)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert fork_server.context_of(CHECKOUT).get_start_method() == "spawn"
    assert fork_server.in_fork(CHECKOUT, os.getppid) == os.getpid()

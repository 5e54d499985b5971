"""On Dassl itself: a run trains, resumes, is tested, and locks its folder.

Dassl is on no registry: `DASSL=<folder of its source> pytest tests/dassl_compat`, with what it
imports (gdown, tabulate) installed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import train

ROOT = Path(train.__file__).parent
DASSL = os.environ.get("DASSL", "")

pytestmark = pytest.mark.skipif(not DASSL, reason="DASSL does not name a folder with its source")


@pytest.fixture
def start(tmp_path):
    """Start train.py in a process where `import dassl` finds Dassl's own."""
    # Dassl imports wilds at once, for data sets that no test uses.
    (tmp_path / "wilds.py").write_text("def get_dataset(*args, **kwargs): ...\n")
    paths = [str(Path(DASSL).absolute()), str(tmp_path), str(ROOT)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    processes = []

    def run(*keys, command=("train.py",)):
        words = [
            *("--root", str(tmp_path / "data"), "--output-dir", str(tmp_path / "out")),
            *("--dataset-config-file", str(ROOT / "configs/datasets/digits.yaml")),
            *("--config-file", str(ROOT / "configs/trainers/CoOp/tiny.yaml"), "--seed", "1"),
            *("--trainer", "CoOp_AnchorOPT", "DATASET.NUM_SHOTS", "2", "USE_CUDA", "False"),
            *("TRAINER.ANCHOROPT.ANCHOR_EPOCHS", "2", "DATALOADER.NUM_WORKERS", "0"),
            *("TRAIN.CHECKPOINT_FREQ", "1", *keys),
        ]
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", *command, *words],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def results(text):
    return re.findall(r"^\* .*", text, re.MULTILINE)


def test_a_run_locks_its_folder(start, tmp_path):
    keys = ["OPTIM.MAX_EPOCH", "1000"]
    first = start(*keys)
    checkpoint = tmp_path / "out/prompt_learner/checkpoint"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < deadline and first.poll() is None:
        time.sleep(0.1)
    assert checkpoint.exists(), first.communicate()
    for command in (["train.py"], ["-m", "anchoropt_plugin", "run", "train.py"]):
        second = start(*keys, command=command)
        _, errors = second.communicate(timeout=120)
        assert second.returncode == 2
        *repairs, line = errors.splitlines()
        assert line.startswith(f"error: {tmp_path}/out is in use by process {first.pid} on ")
        assert all(repair.startswith("repaired dassl.") for repair in repairs)
    assert [path.name for path in (tmp_path / "out").glob("log*")] == ["log.txt"]


def test_a_finished_run_is_resumed(start, tmp_path):
    whole = start("OPTIM.MAX_EPOCH", "2")
    said, errors = whole.communicate(timeout=120)
    assert whole.returncode == 0, errors
    assert "repaired dassl.utils.load_checkpoint" in errors + said
    again = start("OPTIM.MAX_EPOCH", "2")
    resumed, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    assert "epoch [" in said and "epoch [" not in resumed
    assert results(said) == results(resumed) != []

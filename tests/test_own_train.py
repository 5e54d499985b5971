"""The train.py in docs/hooks.md runs as it stands, and tells a mistake in one line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs/trainers/CoOp/tiny.yaml"


@pytest.fixture
def run(tmp_path):
    page = (ROOT / "docs/hooks.md").read_text(encoding="utf-8")
    (source,) = re.findall(r"```python\n(import anchoropt_plugin.*?)```", page, re.DOTALL)
    (tmp_path / "train.py").write_text(source, encoding="utf-8")
    opts = [
        *("TRAINER.NAME", "CoOp_AnchorOPT", "DATASET.NAME", "Digits", "SEED", "1"),
        *("DATASET.ROOT", str(tmp_path / "data"), "OUTPUT_DIR", str(tmp_path / "out")),
        *("OPTIM.MAX_EPOCH", "1", "TRAINER.ANCHOROPT.ANCHOR_EPOCHS", "2"),
    ]

    def train(*keys):
        return subprocess.run(
            [sys.executable, "train.py", str(CONFIG), *opts, *keys],
            cwd=tmp_path,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "ANCHOROPT_CACHE": str(tmp_path / "cache"),
            },
            capture_output=True,
            text=True,
            check=False,
        )

    return train


def test_the_train_py_of_the_docs_runs(run, tmp_path):
    done = run()
    assert done.returncode == 0, done.stderr
    assert "stage 1 epoch [2/2]" in done.stdout + done.stderr
    assert (tmp_path / "out/prompt_learner/model.pth.tar-1").is_file()


def test_it_tells_a_mistake_in_one_line_and_ends_with_status_2(run, tmp_path):
    done = run("TRAINER.ANCHOROPT.POSITION", "sinkhron")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and "did you mean 'sinkhorn'?" in line
    assert not list(tmp_path.rglob("model*"))


def test_another_error_keeps_its_trace(run, tmp_path):
    script = tmp_path / "train.py"
    text = script.read_text(encoding="utf-8").replace("build_trainer(cfg).train()", "{}['mine']")
    script.write_text(text, encoding="utf-8")
    done = run()
    assert done.returncode == 1 and "Traceback" in done.stderr

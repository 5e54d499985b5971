"""The train.py in docs/hooks.md runs as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs/trainers/CoOp/tiny.yaml"


def test_the_train_py_of_the_docs_runs(tmp_path):
    page = (ROOT / "docs/hooks.md").read_text(encoding="utf-8")
    (source,) = re.findall(r"```python\n(import anchoropt_plugin.*?)```", page, re.DOTALL)
    (tmp_path / "train.py").write_text(source, encoding="utf-8")
    opts = [
        *("TRAINER.NAME", "CoOp_AnchorOPT", "DATASET.NAME", "Digits", "SEED", "1"),
        *("DATASET.ROOT", str(tmp_path / "data"), "OUTPUT_DIR", str(tmp_path / "out")),
        *("OPTIM.MAX_EPOCH", "1", "TRAINER.ANCHOROPT.ANCHOR_EPOCHS", "2"),
    ]
    done = subprocess.run(
        [sys.executable, "train.py", str(CONFIG), *opts],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "ANCHOROPT_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "stage 1 epoch [2/2]" in done.stdout + done.stderr
    assert (tmp_path / "out/prompt_learner/model.pth.tar-1").is_file()

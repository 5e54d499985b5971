"""train.py as a process: ctrl-C, a closed pipe, a terminal without Unicode."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

import train

CONFIGS = Path(train.__file__).parent / "configs"
DIGITS = str(CONFIGS / "datasets" / "digits.yaml")
TINY = str(CONFIGS / "trainers" / "CoOp" / "tiny.yaml")


@pytest.fixture
def started(tmp_path):
    """Return a function that starts a run of CoOp in a new process group."""
    processes = []

    def start(*opts, **environment):
        words = [
            "--root",
            str(tmp_path / "data"),
            "--output-dir",
            str(tmp_path / "out"),
            "--trainer",
            "CoOp",
        ]
        words += ["--dataset-config-file", DIGITS, "--config-file", TINY]
        processes.append(
            subprocess.Popen(
                [sys.executable, train.__file__, *words, "USE_CUDA", "False", *opts],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            )
        )
        return processes[-1]

    yield start
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.parametrize("layout", ["folders", "split"])
def test_a_process_that_cannot_encode_a_path(started, tmp_path, layout):
    split = {"train": [], "test": []}
    for label, name in enumerate(("\u732b", "dog")):
        folder = tmp_path / "own" / name
        folder.mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (32, 32)).save(folder / f"{number}.png")
        split["train"].append([f"{name}/0.png", label, name])
        split["test"].append([f"{name}/1.png", label, name])
    if layout == "split":
        (tmp_path / "own" / "split.json").write_text(json.dumps(split))
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    process = started(
        "DATASET.NAME", "ImageFolder", "DATASET.ROOT", str(tmp_path / "own"), **ascii_only
    )
    _, errors = process.communicate()
    assert process.returncode == 2
    (line,) = (line for line in errors.splitlines() if "Warning" not in line and line[0] != " ")
    assert line.startswith("error: this process cannot encode") and "PYTHONUTF8=1" in line
    assert not (tmp_path / "out").exists()


def test_an_output_folder_that_cannot_be_encoded(started, tmp_path):
    out = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    process = started("OUTPUT_DIR", out)
    _, errors = process.communicate()
    assert process.returncode == 2
    assert "error: this process cannot encode '\\udce9' as utf-8" in errors
    assert not Path(out).exists() and not (tmp_path / "out").exists()


def test_ctrl_c_with_worker_processes(started):
    process = started("DATALOADER.NUM_WORKERS", "2", "OPTIM.MAX_EPOCH", "1000")
    assert any("epoch [2/" in line for line in process.stdout)
    os.killpg(process.pid, signal.SIGINT)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert re.fullmatch(r"interrupted; [^\n]+\n", errors)


def test_ctrl_c_during_imports(started):
    process = started()
    maps = Path(f"/proc/{process.pid}/maps")
    while "libtorch_cpu" not in maps.read_text():
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=60)[1] == "interrupted\n"
    assert process.returncode == 130


def test_a_closed_pipe_ends_the_run_quietly(started):
    process = started("OPTIM.MAX_EPOCH", "1", PYTHONUNBUFFERED="1")
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 1


def test_class_names_beyond_the_terminal_s_encoding(started, tmp_path):
    for name in ("猫", "dog"):
        for i in range(4):
            (tmp_path / "own" / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (60 * i, 0, 0)).save(tmp_path / "own" / name / f"{i}.png")
    own = ["DATASET.NAME", "ImageFolder", "DATASET.ROOT", str(tmp_path / "own")]
    options = ["OPTIM.MAX_EPOCH", "1", "TEST.PER_CLASS_RESULT", "True", "TRAINER.NAME"]
    process = started(*own, *options, "ZeroshotCLIP", PYTHONIOENCODING="ascii")
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert "\\u732b" in out

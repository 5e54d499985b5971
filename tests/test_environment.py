"""Missing optional packages, a missing home, read-only folders: one clear line, or no effect."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import train
from anchoropt_plugin import UserError
from anchoropt_plugin.training import anchor_cache

ROOT = Path(train.__file__).parent
DIGITS = str(ROOT / "configs/datasets/digits.yaml")
SHAPES = str(ROOT / "configs/datasets/shapes.yaml")
TINY = str(ROOT / "configs/trainers/CoOp/tiny.yaml")

COMPARE = ["scripts/compare.py", "--hosts", "CoOp", "--config", "tiny", "--datasets", "digits"]
EXPORT = ["anchoropt_plugin", "export", "--model-dir", "x", "--output"]
REPORT = "for their report: pip install 'anchoropt-plugin[report]'"
FEATURES = {
    "pandas": (
        COMPARE,
        f"experiments need pandas {REPORT}",
    ),
    "matplotlib": (
        ["scripts/demo.py"],
        f"experiments need matplotlib {REPORT}",
    ),
    "jinja2": (
        COMPARE,
        f"experiments need jinja2 {REPORT}",
    ),
    "submitit": (
        [*COMPARE, "--executor", "slurm"],
        "--executor slurm needs submitit: pip install 'anchoropt-plugin[slurm]'",
    ),
    "openai": (
        ["anchoropt_plugin", "describe", "cat", "--model", "x", "--output", "cat.json"],
        "describe needs openai: pip install 'anchoropt-plugin[describe]'",
    ),
    "onnx": (
        [*EXPORT, "x.onnx"],
        "export to .onnx needs onnx: pip install 'anchoropt-plugin[export]'",
    ),
    "onnxruntime": (
        [*EXPORT, "x.onnx"],
        "export to .onnx needs onnxruntime: pip install 'anchoropt-plugin[export]'",
    ),
    "wandb": (
        [
            *("train.py", "--root", "data", "--trainer", "CoOp_AnchorOPT", "--config-file", TINY),
            *("--dataset-config-file", SHAPES, "TRAIN.LOGGERS", "['csv', 'wandb']"),
        ],
        "TRAIN.LOGGERS wandb needs wandb: pip install 'anchoropt-plugin[wandb]'",
    ),
    "sklearn": (
        [
            *("train.py", "--root", "data", "--trainer", "ZeroshotCLIP"),
            *("--config-file", TINY, "--dataset-config-file", DIGITS),
        ],
        "the Digits data set needs scikit-learn: pip install 'anchoropt-plugin[data]'",
    ),
}
"""By optional package: a command that needs the package, and the error without the package."""


def test_every_optional_package_is_tested():
    metadata = pytest.importorskip("tomllib", reason="Python 3.10 reads no toml")
    extras = metadata.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    needed = extras.keys() - {"docs", "dev"}
    names = {Requirement(text).name for extra in needed for text in extras[extra]}
    elsewhere = {"scikit-learn", "open_clip_torch", "transformers"}  # encoders/test_hub_names.py
    assert names - elsewhere == FEATURES.keys() - {"sklearn"}


_ONE_BY_ONE = """
import contextlib, io, json, runpy, sys
root, features = sys.argv[1], json.loads(sys.argv[2])
sys.path[:0] = [root, f"{root}/scripts"]
for package, (argv, _) in features.items():
    sys.modules[package] = None  # importing the package fails as if it were not installed
    sys.argv = argv
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            if argv[0].endswith(".py"):
                runpy.run_path(f"{root}/{argv[0]}", run_name="__main__")
            else:
                runpy.run_module(argv[0], run_name="__main__", alter_sys=True)
            status = 0
        except SystemExit as end:
            status = end.code
    del sys.modules[package]
    print(json.dumps([package, status, errors.getvalue()]))
"""


def test_a_command_without_its_package_says_what_to_install(tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _ONE_BY_ONE, str(ROOT), json.dumps(FEATURES)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = [json.loads(line) for line in done.stdout.splitlines()]
    wanted = [[package, 2, f"error: {line}\n"] for package, (_, line) in FEATURES.items()]
    assert said == wanted
    assert list(tmp_path.iterdir()) == []


def words(tmp_path, *keys, root="data"):
    return [
        *("--root", str(tmp_path / root), "--output-dir", str(tmp_path / "out"), "--seed", "1"),
        *("--dataset-config-file", SHAPES, "--config-file", TINY, "--trainer", "CoOp_AnchorOPT"),
        *("DATASET.NUM_SHOTS", "2", "OPTIM.MAX_EPOCH", "1", "USE_CUDA", "False"),
        *("TRAINER.ANCHOROPT.ANCHOR_EPOCHS", "1", "DATASET.SUBSAMPLE_CLASSES", "base", *keys),
    ]


def test_a_run_without_any_optional_package(tmp_path):
    packages = ["tensorboard", *FEATURES]
    (tmp_path / "sitecustomize.py").write_text(
        f"import sys\nsys.modules.update(dict.fromkeys({packages}))\n"
    )
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *words(tmp_path)],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("TensorBoard is missing (pip install tensorboard)") == 1
    assert "* accuracy: " in done.stdout
    assert list((tmp_path / "out/tensorboard").iterdir()) == []


def test_no_module_imports_an_optional_package_at_the_top():
    """Optional packages are imported in the functions that need them."""
    package = ROOT / "anchoropt_plugin"
    # Commands import the code of experiments after they have looked for its packages.
    for path in {*package.glob("**/*.py")} - {*package.glob("experiments/*.py")}:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.partition(".")[0] for name in names} & FEATURES.keys(), path


@pytest.mark.parametrize("home", ["a file", "nowhere", "read-only"])
def test_a_run_without_a_home_says_once_that_anchors_are_not_cached(
    tmp_path, monkeypatch, capsys, home
):
    (tmp_path / "a file").touch()
    homes = {"a file": tmp_path / "a file", "nowhere": Path("/proc/nowhere"), "read-only": "/proc"}
    monkeypatch.setenv("HOME", str(homes[home]))
    for name in ("ANCHOROPT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert train.main(words(tmp_path)) == 0
    said = capsys.readouterr()
    assert said.out.count(f"cannot cache the anchors in {homes[home]}/.cache/anchoropt_plugin") == 1
    assert said.err == ""


def test_without_a_home_the_cache_folder_is_an_error(monkeypatch):
    def expanduser(self):
        raise RuntimeError("Could not determine home directory.")

    for name in ("ANCHOROPT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "expanduser", expanduser)
    with pytest.raises(UserError, match=r"home directory.*; set HOME or ANCHOROPT_CACHE"):
        anchor_cache.cache_folder()


def test_an_unreadable_cache_is_empty():
    assert (
        anchor_cache.get(Path("x" * 300), "key", (1, 8)) is None
    )  # the kernel refuses such a name


def test_a_data_set_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert train.main(words(tmp_path, root="file/data")) == 2
    assert capsys.readouterr().err == (
        f"error: cannot write the data set to {tmp_path}/file/data/shapes: Not a directory; "
        "give a --root that can be written to\n"
    )
    assert not (tmp_path / "out").exists()


def test_a_read_only_data_set_gives_the_same_draw(tmp_path, capsys):
    """The few-shot draw cannot be saved, so it is drawn again, with the same result."""

    def results():
        return [line for line in capsys.readouterr().out.splitlines() if line.startswith("* ")]

    assert train.main(words(tmp_path)) == 0
    first = results()
    draws = tmp_path / "data/shapes/split_fewshot"
    shutil.rmtree(draws)
    draws.touch()  # blocks the folder even if the test runs as root
    before = sorted((tmp_path / "data").rglob("*"))
    assert train.main(words(tmp_path, "OUTPUT_DIR", str(tmp_path / "again"))) == 0
    assert results() == first
    assert sorted((tmp_path / "data").rglob("*")) == before

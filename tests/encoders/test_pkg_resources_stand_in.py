"""Without ``pkg_resources``, clip, its copies in public repositories, and guarded imports work."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import packaging.version
import pytest

import anchoropt_plugin
from anchoropt_plugin.encoders.pkg_resources_stand_in import offered_pkg_resources

HIDE = """
import sys

class Hidden:
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in ("setuptools", "pkg_resources"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
"""
COPY = """
import torch
from pkg_resources import packaging

if packaging.version.parse(torch.__version__) < packaging.version.parse("1.7.1"):
    raise SystemExit("an old torch")
print("the repository's own clip")
"""
TRAIN = """
from clip import clip
try:
    __import__("pkg_resources").declare_namespace(__name__)
except ImportError as error:
    print(error)
"""


def test_run_serves_a_repository_with_its_own_clip_without_pkg_resources(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    (repository / "clip").mkdir(parents=True)
    (repository / "clip/__init__.py").touch()
    (repository / "clip/clip.py").write_text(COPY)
    (repository / "train.py").write_text(TRAIN)
    (tmp_path / "sitecustomize.py").write_text(HIDE)
    package = Path(anchoropt_plugin.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "anchoropt_plugin", "run", str(repository / "train.py")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{package}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.stdout == (
        "the repository's own clip\n"
        "pkg_resources is not installed, and its stand-in has no declare_namespace: "
        "pip install 'setuptools<81'\n"
    )
    assert done.returncode == 0


def test_other_programs_see_no_stand_in(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(HIDE)
    package = Path(anchoropt_plugin.__file__).parents[1]
    statements = "import anchoropt_plugin, sys; print('pkg_resources' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", statements],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{package}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "False\n"


def test_an_installed_pkg_resources_is_used_and_completed(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = ModuleType("pkg_resources")  # that of setuptools 70
    monkeypatch.setitem(sys.modules, "pkg_resources", installed)
    with offered_pkg_resources():
        assert sys.modules["pkg_resources"] is installed
        assert installed.packaging.version is packaging.version
    assert sys.modules["pkg_resources"] is installed
    own = installed.packaging = ModuleType("packaging")
    with offered_pkg_resources():
        assert installed.packaging is own


def test_the_stand_in_can_be_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pkg_resources", None)
    with offered_pkg_resources():
        assert importlib.util.find_spec("pkg_resources")
        assert getattr(sys.modules["pkg_resources"], "__path__", None) is None
    assert "pkg_resources" not in sys.modules

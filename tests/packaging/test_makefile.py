"""The environment that make uses."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
@pytest.mark.parametrize(
    ("variables", "used"),
    [
        ({}, ".venv"),
        ({"VIRTUAL_ENV": "venv"}, "venv"),
        ({"CONDA_DEFAULT_ENV": "clip", "CONDA_PREFIX": "conda/envs/clip"}, "conda/envs/clip"),
        ({"CONDA_DEFAULT_ENV": "base", "CONDA_PREFIX": "conda"}, ".venv"),
        ({"CONDA_DEFAULT_ENV": "empty", "CONDA_PREFIX": "conda/envs/empty"}, ".venv"),
        (
            {
                "VIRTUAL_ENV": "venv",
                "CONDA_DEFAULT_ENV": "clip",
                "CONDA_PREFIX": "conda/envs/clip",
            },
            "venv",
        ),
    ],
)
def test_make_uses_the_active_environment(
    variables: dict[str, str], used: str, tmp_path: Path
) -> None:
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    for environment in ("venv", "conda", "conda/envs/clip"):
        python = tmp_path / environment / "bin/python"
        python.parent.mkdir(parents=True)
        python.touch()
    said = subprocess.run(
        ["make", "--dry-run", "demo"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], **variables},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert said.splitlines()[-1] == f"{used}/bin/python scripts/demo.py"
    assert ("-m venv" in said) == (used == ".venv"), "an active environment is not made again"

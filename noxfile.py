"""The tests on several versions of Python and torch: `make matrix`, or `nox --session lint`.

A Python that this machine lacks is skipped, and nox says so at the end. If a folder has the source
of Dassl, `DASSL=<folder> make matrix` also runs the tests that need Dassl.
`SELECTION="tests anchoropt_plugin datasets docs" make matrix` runs everything.
"""

from __future__ import annotations

import os

import nox

nox.options.default_venv_backend = "uv|virtualenv"
nox.options.error_on_missing_interpreters = False

PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
TORCH = {"2.4": ["torch==2.4.*", "torchvision==0.19.*"], "newest": []}
"""Packages installed besides the package itself; its own version range allows the newest torch."""
SELECTION = (
    "anchoropt_plugin tests/config tests/dassl_compat tests/encoders tests/method tests/prompts "
    "tests/process tests/files/test_checkpoints.py tests/trainers/test_cocoop_and_maple.py "
    "tests/training/test_loading.py tests/training/test_two_stages.py tests/test_environment.py "
    "tests/test_train_cli.py tests/test_train_process.py"
)
"""The tests that depend on Python and torch directly."""


@nox.session(python=PYTHONS)
@nox.parametrize("torch", list(TORCH))
def tests(session: nox.Session, torch: str) -> None:
    """Run the tests on a version of torch."""
    if torch == "2.4" and session.python == "3.13":
        session.skip("torch 2.4 does not support Python 3.13")
    session.install("-e", ".[data,report,slurm,describe,export,docs,dev]", *TORCH[torch])
    if os.environ.get("DASSL"):
        session.install("gdown", "tabulate")  # Dassl imports both
    selection = os.environ.get("SELECTION", SELECTION).split()
    session.run("pytest", "-q", "-n", "2", *selection, env={"OMP_NUM_THREADS": "1"})


@nox.session
def lint(session: nox.Session) -> None:
    """Check syntax and types for each Python; no interpreter of that version is needed."""
    session.install("ruff", "mypy", "-e", ".")
    for version in PYTHONS:
        target = f"py{version.replace('.', '')}"
        session.run("ruff", "check", "--ignore", "UP", "--target-version", target, ".")
        session.run("mypy", "--python-version", version)

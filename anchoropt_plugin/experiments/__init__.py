"""Experiments: plan the runs, execute them, report their results.

The command lines are ``python -m anchoropt_plugin compare`` and ``ablate``. A *run* is one
command of a ``train.py``. A *job* is a training and the tests of the trained model.
"""

from __future__ import annotations

import importlib.util

from ..errors import UserError


def check_packages() -> None:
    """Check that the packages of the report are installed, before runs are started.

    Raises:
        UserError: one of them is missing.
    """
    for package in ("pandas", "matplotlib", "jinja2"):
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"experiments need {package} for their report: pip install "
                "'anchoropt-plugin[report]'"
            )

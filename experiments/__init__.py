"""Experiments: plan the runs, execute them, report their results.

The command lines are ``scripts/compare.py`` and ``scripts/ablate.py``. A *run* is one command of
``train.py``. A *job* is a training and the tests of the trained model.
"""

from __future__ import annotations

import importlib.util

from anchoropt_plugin.errors import UserError
from dassl.engine import TrainerX

for _package in ("pandas", "matplotlib", "jinja2"):  # now, not after all runs are finished
    if importlib.util.find_spec(_package) is None:
        raise UserError(f"experiments need {_package} for their report: pip install -e '.[report]'")

if TrainerX.__module__.startswith("dassl."):  # else `dassl` is anchoropt_plugin.dassl_compat
    raise UserError(
        "experiments read results.json, which the installed Dassl does not write: pip uninstall "
        "dassl (anchoropt_plugin has its own runtime), or use another environment"
    )

"""Experiments as commands: what to run, running it, and what came out.

``scripts/compare.py`` and ``scripts/ablate.py`` are their command lines. A *job* trains once and
tests what it trained; a *run* is one command of ``train.py``, and its own files say how it ended.
"""

from __future__ import annotations

import importlib.util

from anchoropt_plugin.errors import UserError

for _package in ("pandas", "matplotlib"):  # now, and not when all runs are done
    if importlib.util.find_spec(_package) is None:
        raise UserError(f"experiments need {_package} for their report: pip install -e '.[report]'")

"""Warn of public names of the package that no page documents; `sphinx -W` then fails."""

from __future__ import annotations

from typing import Any

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

import anchoropt_plugin

log = logging.getLogger(__name__)


def check(app: Sphinx, env: BuildEnvironment) -> None:
    """Compare ``anchoropt_plugin.__all__`` with the documented objects."""
    documented = env.domains.python_domain.objects
    for name in anchoropt_plugin.__all__:
        if f"anchoropt_plugin.{name}" not in documented:
            log.warning("no page documents the public name anchoropt_plugin.%s", name)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the check with Sphinx."""
    app.connect("env-check-consistency", check)
    return {"parallel_read_safe": True}

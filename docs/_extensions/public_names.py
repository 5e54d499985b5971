"""Document public names under the package, and warn of those that no page documents.

`sphinx -W` makes such a warning an error.
"""

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
    """Register the check with Sphinx; the change of the classes is in this process only."""
    for public in (getattr(anchoropt_plugin, name) for name in anchoropt_plugin.__all__):
        if isinstance(public, type):  # in a signature, the name then links to its documentation
            public.__module__ = "anchoropt_plugin"
    app.connect("env-check-consistency", check)
    return {"parallel_read_safe": True}

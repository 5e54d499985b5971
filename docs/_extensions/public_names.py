"""Link public names in signatures, and warn of public names that no page documents.

`sphinx -W` makes such a warning an error.
"""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

import anchoropt_plugin

log = logging.getLogger(__name__)


def link(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement
) -> nodes.reference | None:
    """Link a class of a submodule, as type hints name it, to the public name's documentation."""
    name = node["reftarget"].rpartition(".")[2]
    if node.get("refdomain") != "py" or name not in anchoropt_plugin.__all__:
        return None
    target, page = f"anchoropt_plugin.{name}", node["refdoc"]
    domain = env.domains.python_domain
    return domain.resolve_xref(env, page, app.builder, "obj", target, node, content)


def check(app: Sphinx, env: BuildEnvironment) -> None:
    """Compare ``anchoropt_plugin.__all__`` with the documented objects."""
    documented = env.domains.python_domain.objects
    for name in anchoropt_plugin.__all__:
        if f"anchoropt_plugin.{name}" not in documented:
            log.warning("no page documents the public name anchoropt_plugin.%s", name)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register both with Sphinx."""
    app.connect("missing-reference", link)
    app.connect("env-check-consistency", check)
    return {"parallel_read_safe": True}

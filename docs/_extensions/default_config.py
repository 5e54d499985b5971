"""The directive ``{default-config} TRAIN TEST`` shows sections of the default configuration."""

from __future__ import annotations

from functools import reduce
from operator import getitem
from typing import Any

import yaml
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import train
from dassl.config import get_cfg_default


class DefaultConfigDirective(SphinxDirective):
    """Show sections of the default configuration of ``train.py`` as yaml."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        cfg = get_cfg_default()
        train.extend_cfg(cfg)
        paths = self.arguments[0].split()
        text = "\n".join(_as_yaml(path, reduce(getitem, path.split("."), cfg)) for path in paths)
        return [nodes.literal_block(text, text, language="yaml")]


def _as_yaml(path: str, node: Any) -> str:
    """Return a section of the configuration as yaml under its path."""
    plain = yaml.safe_load(node.dump()) if hasattr(node, "dump") else node
    for part in reversed(path.split(".")):
        plain = {part: plain}
    return yaml.safe_dump(plain, sort_keys=False, default_flow_style=None)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive with Sphinx."""
    app.add_directive("default-config", DefaultConfigDirective)
    return {"parallel_read_safe": True}

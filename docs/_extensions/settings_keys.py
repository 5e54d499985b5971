"""Directives that write configuration keys from the code, so that the page cannot go stale.

``{settings} position position_lr`` documents these attributes of ``AnchorOPTConfig``: key, type,
default and the text of the class's docstring. ``{default-config} TRAIN TEST`` shows sections of the
default configuration. An attribute that no page documents is a warning; `sphinx -W` then fails.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import Field, fields
from functools import reduce
from operator import getitem
from typing import Any

import yaml
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

import train
from anchoropt_plugin.training.settings import AnchorOPTConfig
from dassl.config import get_cfg_default

log = logging.getLogger(__name__)

KEY = "TRAINER.ANCHOROPT."
FIELDS: dict[str, Field[Any]] = {field.name: field for field in fields(AnchorOPTConfig)}


def meanings() -> dict[str, str]:
    """Return the text of each entry under ``Attributes:`` in the docstring of the settings."""
    section = inspect.getdoc(AnchorOPTConfig).partition("Attributes:\n")[2]
    entries = re.findall(r"^    (\w+): (.*(?:\n     .*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


class SettingsDirective(SphinxDirective):
    """Document attributes of ``AnchorOPTConfig`` as configuration keys."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        names = self.arguments[0].split()
        return [node for name in names for node in self._key(name)]

    def _key(self, name: str) -> list[nodes.Node]:
        if name not in FIELDS or name not in meanings():
            raise self.error(f"AnchorOPTConfig has no documented attribute {name!r}")
        field, text = FIELDS[name], meanings()[name]
        default = str(field.default) if field.default != "" else '""'
        lines = [
            f":::{{confval}} {KEY}{name.upper()}",
            f"`{field.type}`, default `{default}`: {text.replace('``', '`')}",
            ":::",
        ]
        return self.parse_text_to_nodes("\n".join(lines))


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


def check(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of settings that no page documents."""
    documented = {name for kind, name in env.domains.standard_domain.objects if kind == "confval"}
    for name in FIELDS:
        if f"{KEY}{name.upper()}" not in documented:
            log.warning("no page documents the setting %s%s", KEY, name.upper())


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directives with Sphinx."""
    app.add_directive("settings", SettingsDirective)
    app.add_directive("default-config", DefaultConfigDirective)
    app.connect("env-check-consistency", check)
    return {"parallel_read_safe": True}

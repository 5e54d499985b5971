"""The facts of a finished run: its time, its memory, its machine and its commit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files.atomic import write_text

FACTS = "run.json"
"""The file of the facts, in a run's folder."""


def write_facts(facts: Mapping[str, Any], folder: Path) -> None:
    """Write ``run.json``, whole or not at all."""
    write_text(folder / FACTS, json.dumps(facts, indent=1))


def read_facts(folder: Path) -> dict[str, Any]:
    """Return what ``run.json`` holds; an empty dict for a run that was started by hand."""
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}

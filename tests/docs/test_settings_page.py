"""The page of settings has a row for each key of ``TRAINER.ANCHOROPT``, with the code's words."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from pathlib import Path

from anchoropt_plugin.training.settings import AnchorOPTConfig

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


def rows() -> list[str]:
    """Return a row of Markdown for each key: its default, and its meaning from the docstring."""
    section = inspect.getdoc(AnchorOPTConfig).partition("Attributes:\n")[2]
    entries = re.findall(r"^    (\w+): (.*(?:\n     .*)*)", section, re.MULTILINE)
    meanings = {name: " ".join(text.split()).replace("``", "`") for name, text in entries}
    return [
        f"| `{field.name.upper()}` | `{field.default!r}` | {meanings[field.name]} |"
        for field in fields(AnchorOPTConfig)
    ]


def test_the_page_has_each_key_once() -> None:
    """What is missing below is the row to put there."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    assert [row for row in rows() if lines.count(row) != 1] == []

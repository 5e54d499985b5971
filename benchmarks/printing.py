"""How rows of a benchmark are shown, in a terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from benchmarks.harness import Row

CAPTION = """\
tokens: through the text tower; GFLOP: by the cost model; memory: peak of what tensors hold during a
step beyond what they held before; features (or logits), gradients: relative error against the plain
way; of ceiling: share of the GFLOP/s of a matrix product, measured in between."""
COLUMNS = (
    "",
    "tokens",
    "GFLOP",
    "median",
    "faster",
    "memory",
    "leaner",
    "features",
    "gradients",
    "GFLOP/s",
    "of ceiling",
)


def cells(row: Row) -> list[str]:
    """A row as text, column by column; its case stands above it."""

    def optional(value: float | None, form: str) -> str:
        return "" if value is None else form.format(value)

    return [
        row.side,
        f"{row.text_tokens:,}",
        f"{row.flops / 1e9:,.1f}",
        f"{row.seconds:.3g} s" if row.seconds >= 0.1 else f"{row.seconds * 1e3:.3g} ms",
        optional(row.faster, "{:.1f}×"),
        f"{row.memory / 2**20:,.0f} MiB",
        optional(row.leaner, "{:.1f}×"),
        optional(row.feature_error, "{:.0e}"),
        optional(row.gradient_error, "{:.0e}"),
        f"{row.flops / row.seconds / 1e9:,.0f}",
        f"{row.of_ceiling:.0%}",
    ]


def describe(machine: dict[str, str | int]) -> str:
    """A machine in words.

    >>> describe({"gpu": "", "processor": "Chip", "threads": 2, "torch": "2.9", "dtype": "fp32"})
    'Chip, 2 threads, torch 2.9, fp32'
    """
    processor = machine["gpu"] or f"{machine['processor']}, {machine['threads']} threads"
    return f"{processor}, torch {machine['torch']}, {machine['dtype']}"


def table_of(name: str, rows: Sequence[Row]) -> Table:
    """The rows of a case for a terminal."""
    table = Table(*COLUMNS, title=name, title_justify="left", expand=True)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        side, *numbers = cells(row)
        table.add_row(side if row.passed else f"[bold red]✗ {side}", *numbers)
    return table

"""Tables of results, for a terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from rich.table import Table

from benchmarks.harness import Row

CAPTION = """\
tokens: through the text tower; GFLOP: by the cost model; memory: peak of the tensors' memory during
a step, minus the memory before the step; features (or logits), gradients: relative error against
the plain way; of ceiling: GFLOP/s divided by those of a matrix product, measured in between."""


def _optional(form: str, value: float | None) -> str:
    return "" if value is None else form.format(value)


COLUMNS: dict[str, Callable[[Row], str]] = {
    "": lambda row: row.side,
    "tokens": lambda row: f"{row.text_tokens:,}",
    "GFLOP": lambda row: f"{row.flops / 1e9:,.1f}",
    "median": lambda row: (
        f"{row.seconds:.3g} s" if row.seconds >= 0.1 else f"{row.seconds * 1e3:.3g} ms"
    ),
    "faster": lambda row: _optional("{:.1f}×", row.faster),
    "memory": lambda row: f"{row.memory / 2**20:,.0f} MiB",
    "leaner": lambda row: _optional("{:.1f}×", row.leaner),
    "features": lambda row: _optional("{:.0e}", row.feature_error),
    "gradients": lambda row: _optional("{:.0e}", row.gradient_error),
    "GFLOP/s": lambda row: f"{row.flops / row.seconds / 1e9:,.0f}",
    "of ceiling": lambda row: f"{row.of_ceiling:.0%}",
}
"""The columns of a table and their texts. The case stands above a table or in a column before."""


def cells(row: Row) -> list[str]:
    """Return the texts of a row, one for each column."""
    return [text(row) for text in COLUMNS.values()]


def describe(machine: dict[str, str | int]) -> str:
    """Return a machine in words.

    >>> describe({"gpu": "", "processor": "Chip", "threads": 2, "torch": "2.9", "dtype": "fp32"})
    'Chip, 2 threads, torch 2.9, fp32'
    """
    processor = machine["gpu"] or f"{machine['processor']}, {machine['threads']} threads"
    return f"{processor}, torch {machine['torch']}, {machine['dtype']}"


def table_of(name: str, rows: Sequence[Row]) -> Table:
    """Return the rows of a case as a table for a terminal."""
    table = Table(*COLUMNS, title=name, title_justify="left", expand=True)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        side, *numbers = cells(row)
        table.add_row(side if row.passed else f"[bold red]✗ {side}", *numbers)
    return table


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]], n_texts: int = 1) -> str:
    """Return a table in Markdown; columns after the first ``n_texts`` hold numbers.

    >>> print(markdown_table(["side", "tokens"], [["ours", "256"]]))
    | side | tokens |
    | --- | ---: |
    | ours | 256 |
    """
    rule = ["---" if column < n_texts else "---:" for column in range(len(heads))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, rule, *rows))

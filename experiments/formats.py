"""Tables for terminals, Markdown, LaTeX, HTML and csv."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence

import pandas as pd
from rich.table import Table as RichTable

from .experiment import Experiment
from .tables import Cell, Table, entries

CAPTION = (
    "Accuracy in per cent, mean ± sample standard deviation over the seeds. {name} is the {mean} "
    "mean of the accuracies averaged over seeds. Δ is the difference of a host with AnchorOPT to "
    "the host without it, or of a changed AnchorOPT to the unchanged one; p is that of the "
    "two-sided paired t-test over the seeds. A difference within the deviations shows nothing."
)


def caption_of(experiment: Experiment) -> str:
    """What the tables of an experiment show."""
    summary = experiment.protocol.summary
    return CAPTION.format(name=summary.name, mean=summary.mean)


def cell_text(cell: Cell | None) -> str:
    """A cell in words.

    >>> cell_text(Cell(80.123, 1.5, 3))
    '80.1 ± 1.5'
    """
    if cell is None:
        return "–"
    text = f"{cell.mean:.1f}"
    return text if cell.std is None else f"{text} ± {cell.std:.1f}"


def delta_text(cell: Cell | None) -> str:
    """The difference of a cell to its reference, with its p-value where it has one.

    >>> delta_text(Cell(80.0, 1.0, 3, delta=1.25, p=0.031))
    '+1.2 (p 0.03)'
    """
    if cell is None or cell.delta is None:
        return ""
    p = "" if cell.p is None else f" (p {cell.p:.2f})" if cell.p >= 0.005 else " (p < 0.01)"
    return f"{cell.delta:+.1f}{p}".replace("-", "−")


def rows_of(table: Table) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table as text; the difference is that of the last column."""
    last = table.columns[-1]
    compared = any(cell.delta is not None for row in table.rows.values() for cell in row.values())
    header = ["method", *table.columns]
    header += [f"Δ {last}"] if compared else []
    header += ["published"] if table.published else []
    rows = []
    for method, row in table.rows.items():
        cells = [cell_text(row.get(column)) for column in table.columns]
        if compared:
            cells.append(delta_text(row.get(last)))
        if table.published:
            known = [row[c].published for c in table.columns if c in row and row[c].published]
            cells.append(" / ".join(f"{number.value:.2f}" for number in known if number))
        least, wanted = min(cell.seeds for cell in row.values()), table.seeds[method]
        rows.append([f"{method} ({least} of {wanted} seeds)" if least < wanted else method, *cells])
    return header, rows


def sources(several: Sequence[Table]) -> list[str]:
    """Where the published numbers in some tables are from."""
    cells = [cell for table in several for row in table.rows.values() for cell in row.values()]
    return list(dict.fromkeys(cell.published.source for cell in cells if cell.published))


def rich_table(table: Table) -> RichTable:
    """A table for the terminal."""
    header, rows = rows_of(table)
    out = RichTable(*header, title=table.title, title_justify="left")
    for column in out.columns[1:]:
        column.justify = "right"
    for row in rows:
        out.add_row(*row)
    return out


def markdown_table(table: Table) -> str:
    """A table in Markdown, with its title above it."""
    header, rows = rows_of(table)
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return f"### {table.title}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def markdown(
    experiment: Experiment, made: Sequence[Table], results: pd.DataFrame, command: str
) -> str:
    """A page in Markdown: what was run, by which command, and the tables."""
    commits = ", ".join(sorted(filter(None, set(results.get("commit", pd.Series(dtype=str))))))
    parts = [
        f"# {experiment.title}",
        experiment.about,
        f"```\n{command}\n```",
        *(markdown_table(table).rstrip() for table in made),
        caption_of(experiment),
        *(f"Published numbers: {source}." for source in sources(made)),
        f"Commit {commits}." if commits else "",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _escaped(text: str, signs: dict[str, str]) -> str:
    return "".join(signs.get(sign, sign) for sign in text)


_LATEX = {"_": r"\_", "&": r"\&", "%": r"\%", "#": r"\#", "±": r"$\pm$", "Δ": r"$\Delta$"}
_LATEX |= {"−": "$-$", "–": "--", "<": "$<$"}


def latex_table(table: Table) -> str:
    """A table in LaTeX, for the package booktabs."""
    header, rows = rows_of(table)
    lines = [" & ".join(_escaped(text, _LATEX) for text in row) + r" \\" for row in rows]
    return "\n".join(
        [
            rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
            rf"% {table.title}",
            r"\toprule",
            " & ".join(_escaped(text, _LATEX) for text in header) + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def html_table(table: Table, stands_out: Callable[[str], bool]) -> str:
    """A table for a page; methods for which ``stands_out`` holds are bold."""
    header, rows = rows_of(table)
    out = [
        f"<table><caption>{html.escape(table.title)}</caption>",
        f"<tr>{''.join(f'<th>{html.escape(text)}</th>' for text in header)}</tr>",
    ]
    for method, row in zip(table.rows, rows, strict=True):
        kind = ' class="strong"' if stands_out(method) else ""
        out.append(f"<tr{kind}>{''.join(f'<td>{html.escape(text)}</td>' for text in row)}</tr>")
    return "\n".join([*out, "</table>"])


def csv_of(several: Sequence[Table]) -> str:
    """All cells of some tables, one a row."""
    return pd.DataFrame(entries(several)).to_csv(index=False, float_format="%.4f")

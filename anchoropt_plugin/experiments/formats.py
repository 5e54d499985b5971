"""Tables as text: for terminals, in Markdown, LaTeX and csv."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from rich.table import Table as RichTable

from .experiment import Experiment
from .tables import Cell, Table, entries

CAPTION = (
    "Accuracy in per cent: mean ± sample standard deviation over the seeds. {name} is the {mean} "
    "mean of the accuracies averaged over seeds. Δ is the difference between a host with AnchorOPT "
    "and the host alone, or between a changed AnchorOPT or a control and the default; p is from a "
    "two-sided paired t-test over the seeds. Holm is p corrected for the number of tests in the "
    "table. A difference with a large p shows nothing: it is no proof that two methods are equal."
)


def caption_of(experiment: Experiment) -> str:
    """Return the caption of an experiment's tables."""
    summary = experiment.protocol.summary
    return CAPTION.format(name=summary.name, mean=summary.mean)


def cell_text(cell: Cell | None) -> str:
    """Return mean and deviation of a cell as text.

    >>> cell_text(Cell(80.123, 1.5, 3))
    '80.1 ± 1.5'
    """
    if cell is None:
        return "–"
    text = f"{cell.mean:.1f}"
    return text if cell.std is None else f"{text} ± {cell.std:.1f}"


def delta_text(cell: Cell | None) -> str:
    """Return the difference of a cell to its reference, with its p-values if there are any.

    >>> delta_text(Cell(80.0, 1.0, 3, delta=-1.25, p=0.031))
    '−1.2 (p 0.03)'
    >>> delta_text(Cell(80.0, 1.0, 3, delta=1.25, p=0.0000204, p_holm=0.00012))
    '+1.2 (p 2e-5, Holm 1e-4)'
    """
    if cell is None or cell.delta is None:
        return ""
    values = {"p": cell.p, "Holm": cell.p_holm}
    texts = [f"{name} {_p_text(p)}" for name, p in values.items() if p is not None]
    return f"{cell.delta:+.1f}".replace("-", "−") + (f" ({', '.join(texts)})" if texts else "")


def _p_text(p: float) -> str:
    if p >= 0.001:
        return f"{p:.2f}" if p >= 0.01 else f"{p:.3f}"
    return f"{p:.0e}".replace("e-0", "e-")


def frame_of(table: Table) -> pd.DataFrame:
    """Return a table as texts, the method in the first column; Δ is that of the last score."""
    last = table.columns[-1]
    compared = any(cell.delta is not None for row in table.rows.values() for cell in row.values())
    rows = []
    for method, row in table.rows.items():
        least, wanted = min(cell.seeds for cell in row.values()), table.seeds[method]
        texts = {"method": f"{method} ({least} of {wanted} seeds)" if least < wanted else method}
        texts |= {column: cell_text(row.get(column)) for column in table.columns}
        if compared:
            texts[f"Δ {last}"] = delta_text(row.get(last))
        if table.published:
            known = [row[c].published for c in table.columns if c in row]
            texts["published"] = " / ".join(f"{number.value:.2f}" for number in known if number)
        rows.append(texts)
    return pd.DataFrame(rows)


def sources(several: Sequence[Table]) -> list[str]:
    """Return the sources of the published numbers in some tables."""
    cells = [cell for table in several for row in table.rows.values() for cell in row.values()]
    return list(dict.fromkeys(cell.published.source for cell in cells if cell.published))


def rich_table(table: Table) -> RichTable:
    """Return a table for the terminal."""
    frame = frame_of(table)
    out = RichTable(*frame.columns, title=table.title, title_justify="left")
    for column in out.columns[1:]:
        column.justify = "right"
    for row in frame.to_numpy():
        out.add_row(*row)
    return out


def markdown_table(table: Table) -> str:
    """Return a table in Markdown, below its title."""
    frame = frame_of(table)
    lines = [frame.columns, ["---", *["---:"] * (len(frame.columns) - 1)], *frame.to_numpy()]
    return f"### {table.title}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def markdown(
    experiment: Experiment, made: Sequence[Table], results: pd.DataFrame, command: str
) -> str:
    """Return a page in Markdown: the experiment, its command and its tables."""
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


_LATEX = str.maketrans({"±": r"$\pm$", "Δ": r"$\Delta$", "−": "$-$", "–": "--", "<": "$<$"})


def _latex_signs(text: str) -> str:
    """Replace the signs that pandas does not escape."""
    return text.translate(_LATEX)


def latex_table(table: Table) -> str:
    """Return a table in LaTeX, for the package booktabs."""
    frame = frame_of(table)
    style = frame.style.hide(axis="index").format(_latex_signs, escape="latex")
    style = style.format_index(_latex_signs, escape="latex", axis=1)
    columns = "l" + "r" * (len(frame.columns) - 1)
    return f"% {table.title}\n" + style.to_latex(hrules=True, column_format=columns)


def csv_of(several: Sequence[Table]) -> str:
    """Return all cells of some tables in csv, a line for each cell."""
    return pd.DataFrame(entries(several)).to_csv(index=False, float_format="%.4f")

"""Tables as text: for terminals, in Markdown, LaTeX and csv."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pandas as pd
from rich.table import Table as RichTable

from ..report.parts import without_repeats
from .experiment import Experiment
from .plan import Method
from .tables import Cell, Table, entries

CAPTION = "Accuracy in per cent: mean ± sample standard deviation over the seeds."
DELTA = (
    "Δ is the difference, over the seeds that both have, between a host with AnchorOPT and the "
    "host alone, or between a changed AnchorOPT or a control and the default"
)
P = "p is from a two-sided paired t-test over the seeds."
P_OF_HARMONIC = (
    "For {0}, p is from the {0} of the single seeds, whose mean difference can be another number "
    "than Δ."
)
HOLM = "Holm is p corrected for the number of tests in its column."
LARGE_P = "A difference with a large p shows nothing: it is no proof that two methods are equal."


ALL_IMAGES = -1
"""The number of shots that stands for all training images."""


def caption_of(experiment: Experiment, made: Sequence[Table]) -> str:
    """Return the caption of an experiment's tables, about what is in them."""
    summary, texts = experiment.protocol.summary, [CAPTION]
    has_summary = any(summary.name in table.columns for table in made)
    if has_summary:
        mean = f"{summary.mean} mean of the accuracies averaged over seeds"
        texts.append(f"{summary.name} is the {mean}.")
    of_methods = [(table.columns[-1], row) for table in made for row in table.rows.values()]
    compared = [row[last] for last, row in of_methods if last in row]  # the cells with a Δ
    has_p = any(cell.p is not None for cell in compared)
    if any(cell.delta is not None for cell in compared):
        texts.append(f"{DELTA}; {P}" if has_p else f"{DELTA}.")
    if has_p and has_summary and summary.mean == "harmonic":
        texts.append(P_OF_HARMONIC.format(summary.name))
    if any(cell.p_holm is not None for cell in compared):
        texts.append(HOLM)
    return " ".join([*texts, *([LARGE_P] if has_p else []), *default_values(experiment.methods)])


def default_values(methods: Sequence[Method]) -> list[str]:
    """Return a sentence on the values that the names of rows leave out, if factors are varied."""
    return [
        f"Default values, in the row {method.name} and in each changed row that names no other "
        f"value: {', '.join(f'{name}={value}' for name, value in method.defaults.items())}."
        for method in methods
        if method.defaults
    ]


def heading(column: str) -> str:
    """Return the heading of a column; a number is one of training images per class.

    >>> heading("16"), heading("1"), heading("-1"), heading("base")
    ('16 shots', '1 shot', 'all images', 'base')
    """
    if column == str(ALL_IMAGES):
        return "all images"
    return counted(int(column), "shot") if column.isdecimal() else column


def counted(number: int, noun: str) -> str:
    """Return a number with its noun.

    >>> counted(1, "job"), counted(2, "job")
    ('1 job', '2 jobs')
    """
    return f"{number} {noun}{'s' * (number != 1)}"


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
    >>> delta_text(Cell(80.0, 1.0, 3, delta=-0.04))
    '0.0'
    """
    if cell is None or cell.delta is None:
        return ""
    values = {"p": cell.p, "Holm": cell.p_holm}
    texts = [f"{name} {_p_text(p)}" for name, p in values.items() if p is not None]
    delta = f"{cell.delta:+.1f}".replace("-", "−") if round(cell.delta, 1) else "0.0"
    return delta + (f" ({', '.join(texts)})" if texts else "")


def _p_text(p: float) -> str:
    if p >= 0.001:
        return f"{p:.2f}" if p >= 0.01 else f"{p:.3f}"
    return f"{p:.0e}".replace("e-0", "e-")


def frame_of(table: Table) -> tuple[pd.DataFrame, str]:
    """Return a table as texts, and a note.

    The method is in the first column; Δ is that of the last score. Scores that all methods share
    have no column: the note has them. It also has the number of seeds, the numbers of images of
    classes with too few, and the methods that predict the same.
    """
    last = table.columns[-1]
    compared = any(cell.delta is not None for row in table.rows.values() for cell in row.values())
    rows = []
    for method, row in table.rows.items():
        texts = {"method": method + _missing_seeds(row, table.seeds[method])}
        texts |= {heading(column): cell_text(row.get(column)) for column in table.columns}
        if compared:
            texts[f"Δ {heading(last)}"] = delta_text(row.get(last))
        if table.published:
            known = [row[c].published for c in table.columns if c in row]
            texts["published"] = " / ".join(f"{number.value:.2f}" for number in known if number)
        rows.append(texts)
    header, texts_of, note = without_repeats(
        [*rows[0]], [[*texts.values()] for texts in rows], always=[heading(last)]
    )
    same = (f"The predictions of {' and '.join(names)} are the same." for names in table.same)
    notes = [_seeds(table), *filter(None, [note]), *_few_images(table), *same]
    return pd.DataFrame(texts_of, columns=header), " ".join(notes)


def _missing_seeds(row: Mapping[str, Cell], wanted: int) -> str:
    """Return how many seeds the cells of a row have, in brackets; nothing if all have all.

    >>> _missing_seeds({"base": Cell(80.0, 1.0, 3), "new": Cell(70.0, 1.0, 2)}, 3)
    ' (new: 2 of 3 seeds)'
    """
    counts = {heading(column): cell.seeds for column, cell in row.items()}
    if min(counts.values()) == wanted:
        return ""
    if len(set(counts.values())) == 1:
        return f" ({min(counts.values())} of {wanted} seeds)"
    fewer = [f"{column}: {n}" for column, n in counts.items() if n < wanted]
    return f" ({', '.join(fewer)} of {wanted} seeds)"


def _seeds(table: Table) -> str:
    cells = [cell for row in table.rows.values() for cell in row.values()]
    if not table.of_seeds:
        return "Each number is of one seed."
    single = " (without ±: one seed)" if any(cell.std is None for cell in cells) else ""
    return f"Mean ± sample standard deviation of {table.of_seeds}{single}."


def _few_images(table: Table) -> Iterator[str]:
    """Yield a sentence for each number of shots that a class has too few images for."""
    for shots, (fewest, most) in table.too_few.items():
        counts = f"{fewest} to {most}" if fewest < most else str(most)
        asked = heading(str(shots))
        yield f"Too few images for {asked}: the training images per class are {counts}."


def sources(several: Sequence[Table]) -> list[str]:
    """Return the sources of the published numbers in some tables."""
    cells = [cell for table in several for row in table.rows.values() for cell in row.values()]
    return list(dict.fromkeys(cell.published.source for cell in cells if cell.published))


def rich_table(table: Table) -> RichTable:
    """Return a table for the terminal."""
    frame, note = frame_of(table)
    out = RichTable(
        *frame.columns,
        title=table.title,
        title_justify="left",
        caption=note or None,
        caption_justify="left",
    )
    for column in out.columns:
        column.overflow = "fold"  # keys that are cut off look the same
    # A narrow terminal breaks the text of a cell between words, never in a method's name.
    words = [len(word) for name in frame["method"] for word in name.split()]
    out.columns[0].min_width = max(words, default=0)
    for column in out.columns[1:]:
        column.justify = "right"
    for row in frame.to_numpy():
        out.add_row(*row)
    return out


def markdown_table(table: Table) -> str:
    """Return a table in Markdown, below its title."""
    frame, note = frame_of(table)
    lines = [frame.columns, ["---", *["---:"] * (len(frame.columns) - 1)], *frame.to_numpy()]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return f"### {table.title}\n\n{text}" + (f"\n{note}\n" if note else "")


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
        caption_of(experiment, made),
        *(f"Published numbers: {source}." for source in sources(made)),
        f"Commit {commits}." if commits else "",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


_LATEX = str.maketrans(
    {sign: rf"\{sign}" for sign in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"±": r"$\pm$", "Δ": r"$\Delta$", "−": "$-$", "–": "--", "<": "$<$", ">": "$>$"}
)


def _latex(text: str) -> str:
    return text.translate(_LATEX)


def latex_table(table: Table) -> str:
    """Return a table in LaTeX with its title and its note as caption, for the package booktabs."""
    frame, note = frame_of(table)
    style = frame.style.hide(axis="index").format(_latex).format_index(_latex, axis=1)
    columns = "l" + "r" * (len(frame.columns) - 1)
    caption = _latex(f"{table.title}: accuracy in per cent. {note}")
    return style.to_latex(
        hrules=True, column_format=columns, caption=caption, position_float="centering"
    )


def csv_of(several: Sequence[Table]) -> str:
    """Return all cells of some tables in csv, a line for each cell."""
    frame = pd.DataFrame(entries(several))
    numbers = frame.select_dtypes("number").columns
    frame[numbers] = frame[numbers].round(4) + 0.0  # a difference of -0.0 is 0
    return frame.to_csv(index=False, float_format="%.4f")

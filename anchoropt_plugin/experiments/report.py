"""The report: results.csv, the tables in three formats, and a page that needs no other file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
from jinja2 import Environment
from markupsafe import Markup
from matplotlib.figure import Figure

from ..files.atomic import write_text
from ..report.figures import FORMATS, position_matrices, training_curves, write_figure
from ..report.parts import figure_html, page_html
from ..training.settings import LEARNED
from ..training.two_stages import SUFFIX
from . import figures
from .execution import Event, unfinished
from .experiment import Experiment
from .factors import number
from .facts import read_facts
from .files import ASSETS
from .formats import (
    caption_of,
    counted,
    csv_of,
    frame_of,
    heading,
    latex_table,
    markdown_table,
    sources,
)
from .plan import NODE, Job
from .tables import Table

BODY = Environment(autoescape=True, trim_blocks=True).from_string(
    (ASSETS / "experiment.html").read_text(encoding="utf-8")
)


def write_report(
    experiment: Experiment,
    jobs: Sequence[Job],
    results: pd.DataFrame,
    made: Sequence[Table],
    failed: Sequence[Event],
    folder: Path,
    command: str,
    seconds: float,
) -> Path:
    """Write the report of an experiment into ``folder``, each file whole or not at all.

    Args:
        experiment: the experiment.
        jobs: its jobs.
        results: a row for each finished run.
        made: the tables.
        failed: the events of failed runs.
        folder: the output folder.
        command: the command line.
        seconds: the time since the start of the command.

    Returns:
        The path of the page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "results.csv", results.to_csv(index=False))
    write_text(folder / "tables.csv", csv_of(made))
    write_text(folder / "tables.md", "\n".join(map(markdown_table, made)))
    write_text(folder / "tables.tex", "\n".join(map(latex_table, made)))
    page = folder / "report.html"
    drawn = list(_figures(experiment, jobs, made))
    _remove_figures(folder, except_of={name for name, _, _ in drawn})
    body = BODY.render(
        experiment=experiment,
        failed=failed,
        tables=[(table, *frame_of(table)) for table in made],
        caption=caption_of(experiment, made),
        sources=sources(made),
        figures=[
            Markup(figure_html(write_figure(figure, folder, name), name, says, name))
            for name, says, figure in drawn
        ],
        orders=_orders(results),
        texts=texts_of_stage_one(results),
        command=command,
        made=_made(jobs, results, seconds),
    )
    write_text(page, page_html(experiment.title, body))
    return page


_OF_TABLES = ("ablation_", "few_shot_", "accuracy_")
"""How the names of figures begin that there is one of for each table."""


def _remove_figures(folder: Path, except_of: set[str]) -> None:
    """Remove figures of tables that an earlier report had: they would show other runs."""
    for path in folder.iterdir():
        kind = path.suffix.removeprefix(".")
        if kind in FORMATS and path.stem.startswith(_OF_TABLES) and path.stem not in except_of:
            path.unlink()


def _figures(
    experiment: Experiment, jobs: Sequence[Job], made: Sequence[Table]
) -> Iterator[tuple[str, str, Figure]]:
    """Yield figures with their names and captions."""
    factors = _factors(experiment)
    for table in made:
        title = "_".join(re.findall(r"[\w.-]+", table.title))
        lines = figures.ablation_lines(table, factors)
        if lines is not None:
            says = (
                f"{table.title}: accuracy for the values of one factor, the others at default; "
                f"{figures.legend_of(table)}. The panels have different scales."
            )
            yield f"ablation_{title}", says, lines
        elif sum(name.isdecimal() for name in table.columns) > 1:
            says = (
                f"{table.title}: accuracy over the training images per class, or all where a class "
                f"has fewer; {figures.legend_of(table)}."
            )
            yield f"few_shot_{title}", says, figures.few_shot_curves(table)
        else:
            joined = "Lines join the same seed of a host with AnchorOPT and of the host alone. "
            says = (
                f"{table.title}: accuracy; {figures.legend_of(table)}. "
                f"{joined if figures.has_pairs(table) else ''}The panels have different scales."
            )
            yield f"accuracy_{title}", says, figures.accuracies(table)
    group, *others = experiment.protocol.datasets
    shots = experiment.protocol.shots[-1]
    shown = [run for job in jobs for run in job.runs if run.shots == shots]
    runs = figures.folders_of(shown, group)
    curves = None if factors else training_curves(runs, group)
    where = f"on {group}"
    if others:
        where += f", the first of {1 + len(others)} data sets"
    if len(experiment.protocol.shots) > 1:
        where += f", {heading(str(shots))}"
    if curves is not None:
        says = (
            f"Training {where}: loss and accuracy of each epoch; bands span the seeds. Do not "
            "compare the losses of methods: the loss of AnchorOPT includes a distillation."
        )
        yield "training", says, curves
    matrices = position_matrices({name: folders[0] for name, folders in runs.items()}, group)
    if matrices is not None:
        says = (
            f"The relaxed position matrix during training {where}, first seed. Each row is a "
            "slot of the context; the columns give the probability of each soft token (v) and "
            "anchor token (A) in this slot. Training uses an order drawn from the matrix, tests "
            "use the most likely order; POSITION soft uses the matrix itself in both."
        )
        yield "positions", says, matrices


def _factors(experiment: Experiment) -> dict[str, dict[str, str]]:
    """Return for each factor that is varied alone its values, in order, with their methods."""
    found: dict[str, dict[str, str]] = {}
    for default in experiment.methods:
        for name, value in default.defaults.items():
            found[name] = {str(value): default.name}
    for method in experiment.methods:
        varied = {**method.factors, **method.factors_at_test}
        if len(varied) == 1 and found.keys() >= varied.keys():
            for name, value in varied.items():
                found[name][str(value)] = method.name
    return {name: dict(sorted(of.items(), key=_by_number)) for name, of in found.items()}


def _by_number(item: tuple[str, str]) -> tuple[bool, float]:
    """Put numbers in front, in their order, and words behind, the default first."""
    value = number(item[0])
    return value is None, value or 0.0


def _orders(results: pd.DataFrame) -> list[str]:
    """Return the orders of tokens that the trainings of each method ended with."""
    if "order" not in results:
        return []
    trained = results[results["order"].notna() & (results["does"] == "train")]
    lines = []
    for (group, method), part in trained.groupby(["group", "method"], sort=False):
        counts = part["order"].value_counts()
        orders = (f"{order} ({counted(n, 'run')})" for order, n in counts.items())
        lines.append(f"{group}, {method}: {'; '.join(orders)}")
    return lines


def texts_of_stage_one(results: pd.DataFrame) -> str:
    """Return the descriptions that anchors were learned from, for each data set; "" if none."""
    if f"{NODE}.DESCRIPTIONS" not in results:
        return ""
    learned = (results["does"] == "train") & results["trainer"].str.endswith(SUFFIX, na=False)
    learned &= (results[f"{NODE}.ANCHOR"] == LEARNED) & (results[f"{NODE}.ANCHOR_WEIGHTS"] == "")
    files = results[learned].groupby("group", sort=False)[f"{NODE}.DESCRIPTIONS"].unique()
    return "; ".join(
        f"{group}: {', '.join(name or 'templates' for name in names)}"
        for group, names in files.items()
    )


def _made(jobs: Sequence[Job], results: pd.DataFrame, seconds: float) -> str:
    def of(column: str) -> str:
        known = results[column].dropna() if column in results else []
        return ", ".join(sorted({str(value) for value in known if value})) or "unknown"

    # Not the rows of the results: some are computed from several runs, and some runs have none.
    runs = [run for job in jobs for run in job.runs]
    left = sum(len(unfinished(job)) for job in jobs)
    total = sum(read_facts(run.folder).get("seconds", 0.0) for run in runs)
    finished = f"{len(runs) - left} of " if left else ""
    return (
        f"{finished}{counted(len(runs), 'run')}, which took {total:.0f} s together; this command "
        f"took {seconds:.0f} s; commit {of('commit')}, anchoropt-plugin {of('anchoropt_plugin')}, "
        f"torch {of('torch')}, Python {of('python')}, {of('device')}"
    )

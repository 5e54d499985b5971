"""Tables and a self-contained page from finished runs."""

from __future__ import annotations

import base64
import html
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from string import Template

import matplotlib

matplotlib.use("Agg")  # a page needs no screen

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from rich.table import Table

SCORES = ["base", "new", "HM"]
STEP = re.compile(r"^epoch \[(\d+)/\d+\] .* loss \S+ \((\S+)\) acc \S+ \((\S+)\)", re.MULTILINE)

PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>AnchorOPT on CoOp</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .3rem .9rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
tr.host td { font-weight: 600; }
img { max-width: 100%; }
figcaption, .note { color: #555; }
</style></head><body>
<h1>AnchorOPT on CoOp</h1>
<p>The embedded CLIP on scikit-learn's handwritten digits: 16 pictures a class of zero … four to
train on (base), tests on these and on five … nine (new), $n_seeds seeds.</p>
$table
<p class="note">$caption</p>
<figure><img alt="loss and accuracy over training" src="data:image/png;base64,$curves">
<figcaption>Training loss and accuracy at each epoch; the band spans the seeds. The losses are
different objectives: AnchorOPT's adds a distillation.</figcaption></figure>
<figure><img alt="position matrix over training" src="data:image/png;base64,$matrix">
<figcaption>The relaxed position matrix over training: row by row, how likely which soft token (v)
or anchor (A) stands in that slot of the context. What is used is a draw from it in training, and
the likeliest order in tests.</figcaption></figure>
<p class="note">Made in $seconds s.</p>
</body></html>
""")


def results_table(rows: list[dict[str, str | int | float]]) -> pd.DataFrame:
    """One row a run, with HM, the harmonic mean of base and new accuracy.

    >>> results_table([{"method": "m", "seed": 1, "base": 60.0, "new": 40.0}])["HM"].tolist()
    [48.0]
    """
    table = pd.DataFrame(rows)
    both = table["base"] + table["new"]
    table["HM"] = (2 * table["base"] * table["new"] / both.where(both > 0, 1)).fillna(0.0)
    return table


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """For each method, in order, mean ± sample standard deviation over the seeds, as text."""
    groups = table.groupby("method", sort=False)[SCORES]
    mean, deviation = groups.mean(), groups.std().fillna(0.0)
    return mean.map("{:.1f}".format) + deviation.map(" ± {:.1f}".format)


def markdown(table: pd.DataFrame) -> str:
    """The summary of ``results_table`` as a table in Markdown."""
    cells = summary(table).reset_index()
    header = "| " + " | ".join(cells.columns) + " |\n|" + " --- |" * len(cells.columns)
    lines = ["| " + " | ".join(row) + " |" for row in cells.itertuples(index=False)]
    return "\n".join([header, *lines]) + "\n"


@dataclass
class Report:
    """What a page shows.

    Attributes:
        table: one row a run, from ``results_table``.
        runs: for each trained method its output folders, one a seed.
        matrix: the output folder whose position matrix is drawn.
        seconds: how long it took.
    """

    table: pd.DataFrame
    runs: dict[str, list[Path]]
    matrix: Path
    seconds: float

    caption = (
        "Accuracy in per cent, mean ± standard deviation over the seeds; HM is the harmonic mean. "
        "On new classes AnchorOPT averages the prompt's logits with the anchors'. The last rows "
        "are controls: what averaging with zero-shot, the anchors alone, or a fixed order of the "
        "tokens give by themselves. A difference within the deviations shows nothing."
    )

    def rich_table(self) -> Table:
        """The table for a terminal."""
        out = Table("method", *SCORES)
        for column in out.columns[1:]:
            column.justify = "right"
        for method, scores in summary(self.table).iterrows():
            out.add_row(str(method), *scores)
        return out

    def html_table(self) -> str:
        """The table for a page; trained methods stand out."""
        lines = ["<table><tr><th>method</th>" + "".join(f"<th>{s}</th>" for s in SCORES) + "</tr>"]
        for method, scores in summary(self.table).iterrows():
            kind = ' class="host"' if method in list(self.runs)[:2] else ""
            cells = "".join(f"<td>{score}</td>" for score in scores)
            lines.append(f"<tr{kind}><td>{html.escape(str(method))}</td>{cells}</tr>")
        return "\n".join([*lines, "</table>"])

    def curves(self) -> Figure:
        """Loss and accuracy over the epochs, from the log files."""
        figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
        for method, folders in self.runs.items():
            history = pd.concat([read_log(folder) for folder in folders]).groupby("epoch")
            for axis, column in zip(axes, ("loss", "accuracy"), strict=True):
                mean = history[column].mean()
                axis.plot(mean.index, mean, label=method)
                axis.fill_between(
                    mean.index, history[column].min(), history[column].max(), alpha=0.2
                )
                axis.set(xlabel="epoch", ylabel=f"training {column}")
        axes[0].set_yscale("log")
        axes[1].legend()
        return figure

    def matrices(self) -> Figure:
        """The relaxed position matrix at five moments of training."""
        lines = (self.matrix / "position.jsonl").read_text(encoding="utf-8").splitlines()
        history = [json.loads(line) for line in lines]
        moments = sorted({round(i * (len(history) - 1) / 4) for i in range(5)})
        figure, axes = plt.subplots(
            1, len(moments), figsize=(10, 2.6), layout="constrained", squeeze=False
        )
        n_soft = read_n_soft(self.matrix, len(history[0]["P"]))
        n_slots = len(history[0]["P"])
        names = [f"v{i + 1}" if i < n_soft else f"A{i + 1 - n_soft}" for i in range(n_slots)]
        for axis, moment in zip(axes[0], moments, strict=True):
            picture = axis.imshow(history[moment]["P"], vmin=0, vmax=1, cmap="viridis")
            axis.set_title(f"epoch {history[moment]['epoch']}")
            axis.set_xticks(range(n_slots), names)
            axis.set_yticks(range(n_slots), range(1, n_slots + 1))
        axes[0, 0].set_ylabel("slot")
        figure.colorbar(picture, ax=axes[0], shrink=0.8)
        return figure


def read_log(folder: Path) -> pd.DataFrame:
    """Columns epoch, loss, accuracy: the running means at the end of each epoch."""
    logs = sorted(folder.glob("log.txt*"), key=lambda path: path.stat().st_mtime)
    steps = [step for log in logs for step in STEP.findall(log.read_text(encoding="utf-8"))]
    last = {int(epoch): (float(loss), float(accuracy)) for epoch, loss, accuracy in steps}
    return pd.DataFrame(
        [(epoch, *values) for epoch, values in sorted(last.items())],
        columns=["epoch", "loss", "accuracy"],
    )


def read_n_soft(folder: Path, n_slots: int) -> int:
    """Soft tokens M, from the record of a run."""
    record = json.loads((folder / "anchoropt.json").read_text(encoding="utf-8"))
    return n_slots - int(record["settings"]["anchor_len"])


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return buffer.getvalue()


def write_report(report: Report, folder: Path) -> Path:
    """Write ``report.html``, its pictures, ``results.csv`` and ``results.md``; return the page."""
    folder.mkdir(parents=True, exist_ok=True)
    report.table.to_csv(folder / "results.csv", index=False, float_format="%.2f")
    (folder / "results.md").write_text(markdown(report.table), encoding="utf-8")
    pictures = {"curves": _png(report.curves()), "matrix": _png(report.matrices())}
    for name, png in pictures.items():
        (folder / f"{name}.png").write_bytes(png)
    page = folder / "report.html"
    page.write_text(
        PAGE.substitute(
            table=report.html_table(),
            caption=html.escape(report.caption),
            n_seeds=report.table["seed"].nunique(),
            seconds=f"{report.seconds:.0f}",
            **{name: base64.b64encode(png).decode() for name, png in pictures.items()},
        ),
        encoding="utf-8",
    )
    return page

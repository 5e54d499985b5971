"""``report.html``: a page about the last test of a run."""

from __future__ import annotations

import html
import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..config.record import recorded_settings
from ..config.same_run import check_results_of_folder
from ..errors import UserError
from ..files.atomic import write_text
from ..files.images import read_image
from ..files.predictions import PREDICTIONS, TOP, Predictions, check_unedited, read_predictions
from ..files.run_events import RESULTS, unedited_results
from ..files.training_images import digest_of_files
from ..process.program import program
from . import figures, measures
from .parts import figure_html, image_html, page_html, without_repeats

PAGE = "report.html"
FIGURES = "figures"
"""A folder beside the page, with the figures as files."""
GALLERY = 24
"""The most mistakes that are shown as images."""
SIDE = 240
"""The larger side of such an image, in pixels."""
MATRIX = 30
"""The most classes of a confusion matrix that is shown."""
PAIRS = 15
"""The most confusions that are listed."""
_TEXTS = ("prediction", "most often taken for")
"""The columns of texts, which are aligned left; the first column of a table always is."""
_SETTINGS = {
    "TRAINER.NAME": "{}",
    "MODEL.BACKBONE.NAME": "{}",
    "DATASET.NAME": "{}",
    "DATASET.SUBSAMPLE_CLASSES": "classes: {}",
    "DATASET.NUM_SHOTS": "up to {} training images per class",
    "SEED": "seed {}",
    "TRAINER.ANCHOROPT.ENSEMBLE": "ENSEMBLE {}",
}
"""The settings below the title, and how they are written."""


def write_page(folder: Path) -> Path:
    """Write ``report.html`` into an output folder, whole or not at all, and return its path.

    Raises:
        UserError: a folder without a readable ``predictions.csv``, or one of another test than
            ``results.json``, or a ``results.json`` of another run than ``config.yaml``.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: give the output folder of a run")
    if not (folder / PREDICTIONS).is_file():
        advice = "give the output folder of a run"
        if (folder / "config.yaml").is_file():
            advice = f"test the run again (train.py --eval-only --model-dir {folder})"
        raise UserError(
            f"{folder} has no {PREDICTIONS}: {advice}, or write the file: {program()} "
            "report --help names its columns"
        )
    results = unedited_results(folder)
    predictions = read_predictions(folder / PREDICTIONS, is_own=not results)
    _check_same_test(folder, predictions, results)
    check_results_of_folder(folder, results)
    config = recorded_settings(folder)
    sections = [*_of_the_test(folder, predictions), *_of_the_training(folder, config, results)]
    title = f"Test of {folder.resolve().name}"
    # A test in the folder of a training has settings of its own.
    config |= {k: value for k, value in results.get("settings", {}).items() if value != -1}
    if not (results.get("after_training", True) or results.get("model")):  # nothing was trained
        config.pop("DATASET.NUM_SHOTS", None)
    if "order" not in results:  # of a host without AnchorOPT
        config.pop("TRAINER.ANCHOROPT.ENSEMBLE", None)
    known = {key: config[key] for key in _SETTINGS if config.get(key, -1) != -1}  # -1: not set
    facts = [_SETTINGS[key].format(value) for key, value in known.items()]
    trained_on = results.get("training", {}).get("DATASET.SUBSAMPLE_CLASSES")
    if trained_on not in (None, config.get("DATASET.SUBSAMPLE_CLASSES")):
        facts.append(f"trained on classes: {trained_on}")
    match results.get("images_per_class"):
        case {"fewest": fewest, "most": most} if "DATASET.NUM_SHOTS" in known:
            place = list(known).index("DATASET.NUM_SHOTS")
            number = f"{most}" if fewest == most else f"{fewest} to {most}"
            facts[place] = f"{number} training images per class"
    facts += [f"{results['split']} split"] if "split" in results else []
    match results.get("model"):
        case {"folder": model, "epoch": epoch}:
            which = "the best epoch" if epoch is None else f"epoch {epoch}"
            facts.append(f"{which} of the model in {model}" if model != "." else which)
    if results.get("training") == {} and "model" not in results:
        facts.append("no trained model")
    facts.append(f"{len(predictions.images):,} images")
    body = [f'<p class="note">{html.escape(", ".join(facts))}</p>', *sections, _LAST]
    write_text(folder / PAGE, page_html(title, "\n".join(body)))
    return folder / PAGE


_LAST = (
    '<p class="note">The numbers of the test are computed from predictions.csv in the same folder, '
    "which lists the images of the test. <code>python -m anchoropt_plugin predict --model-dir "
    "TRAINING TEST/predictions.csv</code>, with the folders of the training and of this test, "
    "classifies just these images.</p>"
)


def _check_same_test(folder: Path, predictions: Predictions, results: dict[str, Any]) -> None:
    """Check that ``predictions.csv`` is of the test of ``results.json``; note changed images."""
    counted = {
        "total": len(predictions.images),
        "correct": int((measures.ranks(predictions) == 0).sum()),
    }
    if any(results.get(name, count) != count for name, count in counted.items()):
        raise UserError(f"{PREDICTIONS} and {RESULTS} in {folder} are of two tests: test again")
    check_unedited(folder / PREDICTIONS, results.get("predictions"))
    images = results.get("images")
    tested = images.get("files") if isinstance(images, dict) else ""
    if tested and digest_of_files(predictions.images) not in ("", tested):
        print(
            "Note: image files were changed after the test: the images of the page may differ from "
            "those that were tested",
            file=sys.stderr,
        )


# ---------------------------------------------------------------------- of the test
def _of_the_test(folder: Path, predictions: Predictions) -> Iterator[str]:
    names, counts = measures.confusion(predictions)
    calibration = measures.calibration(predictions)
    yield _numbers(predictions, names, counts, calibration)
    yield from _gallery(predictions)
    yield from _confusion(names, counts)
    yield from _classes(predictions, names, counts)
    yield "<h2>Calibration</h2>"
    says = (
        f"Reliability diagram: {measures.N_BINS} bins of equal width of the probability of the "
        "prediction; for each bin that has images the accuracy over the mean probability, and "
        "below the share of images. The expected calibration error (ECE) is the mean over all "
        "images of the gap of their bin (Guo et al., 2017)."
    )
    figure = figures.reliability_diagram(calibration)
    yield _figure(folder, figure, "calibration", "reliability diagram", says)


def _has_top(predictions: Predictions, names: Sequence[str]) -> bool:
    """Whether a top-5 accuracy says something."""
    return len(predictions.top[0]) >= TOP and len(names) > TOP


def _numbers(
    predictions: Predictions,
    names: Sequence[str],
    counts: measures.Counts,
    calibration: measures.Calibration,
) -> str:
    support = counts.sum(1)
    per_class = 100 * (np.diag(counts)[support > 0] / support[support > 0])
    shown = {"top-1 accuracy": measures.top_accuracy(predictions, 1)}
    if _has_top(predictions, names):
        shown[f"top-{TOP} accuracy"] = measures.top_accuracy(predictions, TOP)
    shown["mean over the classes"] = float(per_class.mean())
    shown["mean probability"] = 100 * float(np.mean(predictions.probability))
    shown["calibration error (ECE)"] = 100 * calibration.error
    cells = (f"<div><b>{value:.1f}&nbsp;%</b>{name}</div>" for name, value in shown.items())
    return f'<div class="numbers">{"".join(cells)}</div>'


def _gallery(predictions: Predictions) -> Iterator[str]:
    wrong = measures.mistakes(predictions)
    shown, unread = [], []
    ranks = measures.ranks(predictions)
    for place in wrong[:GALLERY]:
        path, truth = predictions.images[place], predictions.truth[place]
        try:
            image = image_html(_small(path), "image/jpeg", path)
        except UserError as error:
            unread.append(str(error))
            image = '<div class="missing"></div>'
        choice = f", choice {ranks[place] + 1} of the model" if ranks[place] > 0 else ""
        shown.append(
            f'<figure title="{html.escape(path)}">{image}<figcaption><b>'
            f"{html.escape(predictions.top[place][0])}</b> {predictions.probability[place]:.1%}<br>"
            f"truth: {html.escape(truth)}{choice}</figcaption></figure>"
        )
    if unread:
        print(
            f"{len(unread)} of {len(shown)} images of the gallery are left blank: {unread[0]}",
            file=sys.stderr,
        )
    n_images = len(predictions.images)
    yield "<h2>The most confident mistakes</h2>"
    yield f'<p class="note">{len(wrong):,} of {n_images:,} predictions are wrong' + (
        f"; the {len(shown)} with the highest probability:</p>" if shown else ".</p>"
    )
    yield f'<div class="gallery">{"".join(shown)}</div>'


def _small(path: str) -> bytes:
    """Return an image as a small JPEG; raise ``UserError`` if the image cannot be read."""
    image = read_image(path, upright=True)
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _confusion(names: Sequence[str], counts: measures.Counts) -> Iterator[str]:
    shown = measures.most_confused(counts, MATRIX)
    which = "" if len(shown) == len(names) else f" of the {len(shown)} classes with most mistakes"
    yield f"<h2>Confusion matrix{which}</h2>"
    yield (
        '<p class="note">A row for each class of the images, a column for each prediction. A cell '
        "has the number of images; its colour is their share of all images of the class.</p>"
    )
    head = "".join(f"<th>{html.escape(names[j])}</th>" for j in shown)
    cells = {i: "".join(_cell(names, counts, i, j) for j in shown) for i in shown}
    rows = "".join(f"<tr><th>{html.escape(names[i])}</th>{cells[i]}</tr>" for i in shown)
    yield (
        f'<div class="wide"><table class="matrix"><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )
    pairs = measures.confusions(counts)[:PAIRS]
    if pairs:
        yield "<h2>The most frequent confusions</h2>"
        yield _table(
            ["class", "prediction", "images", "share of the class"],
            [
                [names[i], names[j], f"{counts[i, j]:,}", f"{counts[i, j] / counts[i].sum():.1%}"]
                for i, j in pairs
            ],
        )


def _cell(names: Sequence[str], counts: measures.Counts, i: int, j: int) -> str:
    count, kind = counts[i, j], ' class="right"' if i == j else ""
    if not count:
        return "<td></td>"
    share = count / counts[i].sum()
    says = html.escape(f"{names[i]} → {names[j]}: {share:.1%}")
    return f'<td{kind} title="{says}" style="--share:{0.1 + 0.6 * share:.2f}">{count}</td>'


def _classes(
    predictions: Predictions, names: Sequence[str], counts: measures.Counts
) -> Iterator[str]:
    """Yield the table of the classes, the least accurate first."""
    first = {i: (j, counts[i, j]) for i, j in reversed(measures.confusions(counts))}
    ranks = measures.ranks(predictions)
    of_class: dict[str, list[int]] = {name: [] for name in names}
    for name, rank in zip(predictions.truth, ranks.tolist(), strict=True):
        of_class[name].append(rank)
    has_top = _has_top(predictions, names)
    rows = []
    for i in np.argsort(np.diag(counts) / np.maximum(counts.sum(1), 1), kind="stable").tolist():
        n_images = int(counts[i].sum())
        if not n_images:
            continue
        row = [names[i], f"{n_images:,}", f"{counts[i, i] / n_images:.1%}"]
        if has_top:
            row.append(f"{sum(rank >= 0 for rank in of_class[names[i]]) / n_images:.1%}")
        row.append(f"{names[first[i][0]]} ({first[i][1]})" if i in first else "–")
        rows.append(row)
    yield "<h2>Accuracy of each class</h2>"
    top = [f"top-{TOP}"] if has_top else []
    header = ["class", "images", "top-1", *top, "most often taken for"]
    yield f'<div class="high">{_table(header, rows)}</div>'


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    header, rows, note = without_repeats(header, rows)
    kinds = [' class="text"' if name in _TEXTS else "" for name in header]
    lines = [
        "".join(
            f"<{tag}{kind}>{html.escape(text)}</{tag}>"
            for kind, text in zip(kinds, row, strict=True)
        )
        for tag, row in [("th", header), *(("td", row) for row in rows)]
    ]
    below = f'<p class="note">{html.escape(note)}</p>' if note else ""
    return f'<div class="wide"><table><tr>{"</tr><tr>".join(lines)}</tr></table>{below}</div>'


def _figure(folder: Path, figure: Any, file: str, name: str, says: str) -> str:
    """Write a figure beside the page, and return it as a part of the page."""
    svg = figures.write_figure(figure, folder / FIGURES, file)
    return figure_html(svg, name, says, f"{FIGURES}/{file}")


# ---------------------------------------------------------------------- of the training
def _of_the_training(
    folder: Path, config: dict[str, Any], results: dict[str, Any]
) -> Iterator[str]:
    """Yield the sections about a training; a folder with a test alone has none."""
    name = str(config.get("TRAINER.NAME", "run"))
    title = str(config.get("DATASET.NAME", ""))
    curves = figures.training_curves({name: [folder]}, title)
    if curves is not None:
        yield "<h2>Training</h2>"
        says = "Loss and accuracy of each epoch of the training: means over its batches."
        yield _figure(folder, curves, "training", "training curves", says)
    matrices = figures.position_matrices({name: folder}, title)
    if matrices is not None:
        yield "<h2>Position matrix</h2>"
        says = (
            "The relaxed position matrix during the training. Each row is a slot of the context; "
            "the columns give the probability of each soft token (v) and anchor token (A) in it."
        )
        yield _figure(folder, matrices, "positions", "position matrix", says)
    if "order" in results:
        yield f"<p>Order of the tokens at the test: {html.escape(str(results['order']))}</p>"

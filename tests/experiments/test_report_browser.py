"""The report's page; in a browser it fetches nothing, has no errors and fits the window."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from anchoropt_plugin.experiments.execution import Event
from anchoropt_plugin.experiments.experiment import Experiment
from anchoropt_plugin.experiments.plan import host_method, plan
from anchoropt_plugin.experiments.protocols import read_protocol
from anchoropt_plugin.experiments.report import write_report
from anchoropt_plugin.experiments.tables import tables
from anchoropt_plugin.files.run_events import append_event
from anchoropt_plugin.report.figures import position_matrices, training_curves
from tests.browsing import found_browser, opened


def write_epochs(folder):
    for epoch in (1, 2):
        append_event(folder, "epoch", epoch=epoch, epochs=2, loss=float(epoch), acc=50.0 + epoch)


@pytest.fixture(scope="module")
def browser():
    return found_browser()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Write a report with invented numbers, long names, a long command and a failure."""
    out = tmp_path_factory.mktemp("report")
    protocol = read_protocol("base2new").with_changes({"datasets": ["digits"], "shots": [2]})
    methods = [
        host_method("CoOp", "tiny", anchoropt=False),
        host_method("CoOp", "tiny", anchoropt=True, reference="CoOp"),
    ]
    jobs = plan(protocol, methods, out / "data", out, [])
    rows = []
    for run in (run for job in jobs for run in job.runs):
        accuracy = 70.0 + len(rows)
        run.folder.mkdir(parents=True)
        write_epochs(run.folder)
        rows.append(
            {
                **{"method": run.method.name, "reference": run.method.reference},
                **{"host": run.method.host, "trainer": run.method.trainer, "group": run.group},
                **{"dataset": run.dataset, "score": run.score, "shots": 2, "seed": run.seed},
                **{"has_seeds": True, "accuracy": accuracy, "macro_f1": accuracy},
                **{"correct": int(accuracy), "total": 100, "does": "train", "seconds": 1.0},
                **{"commit": "0" * 40, "torch": "2", "python": "3", "device": "cpu"},
                **{"folder": str(run.folder), **run.settings},
            }
        )
    table = pd.DataFrame(rows)
    failed = [Event("failed", jobs[0].runs[0], error="no <memory> & " + "x" * 200)]
    experiment = Experiment("A <report>", "About & about.", protocol, methods)
    command = "python scripts/compare.py " + "--output-dir /a/long/folder " * 20
    made = tables(table, protocol)
    return write_report(experiment, jobs, table, made, failed, out, command, 3.0)


def test_the_page_escapes_texts_and_marks_no_row(page):
    text = page.read_text()
    assert "<h1>A &lt;report&gt;</h1>" in text and "no &lt;memory&gt; &amp; xxx" in text
    assert text.count("<table>") == 1
    assert text.count("<tr>") == text.count("<tr") == 3, "bold looks like best"


@pytest.mark.parametrize("width", [1200, 500])
def test_a_browser_shows_all_of_it_and_fetches_nothing(browser, page, tmp_path, width):
    seen, said, asked = opened(browser, page, tmp_path, width)
    assert seen["images"] >= 2 and seen["broken"] == 0
    assert seen["width"] <= 0  # no scrolling sideways
    assert said == [] and asked == set()


def test_a_page_that_fetches_and_complains_is_seen(browser, page, tmp_path):
    bad = tmp_path / "bad.html"
    extra = '<img src="http://127.0.0.1:9/x.png"><script>console.error("oh")</script><pre>'
    bad.write_text(page.read_text().replace("<pre>", f'{extra}<div style="width:3000px">.</div>'))
    seen, said, asked = opened(browser, bad, tmp_path, 1200)
    assert seen["broken"] == 1 and seen["width"] > 0
    assert any("oh" in line for line in said)
    assert asked == {"http://127.0.0.1:9/x.png"}


def test_figures_have_no_empty_axes_and_whole_epochs(tmp_path):
    lines = [json.dumps({"epoch": n, "temperature": 1.0, "P": [[1, 0], [0, 1]]}) for n in (1, 2)]
    (tmp_path / "position.jsonl").write_text("\n".join(lines))
    record = {"backbone": "tiny", "classes": ["cat"], "settings": {"anchor_len": 1}}
    (tmp_path / "anchoropt.json").write_text(json.dumps(record))
    write_epochs(tmp_path)
    figure = position_matrices({"one": tmp_path})
    assert [axis.get_title() for axis in figure.axes[:2]] == ["epoch 1", "epoch 2"]
    assert len(figure.axes) == 3  # and the colour bar
    figure = training_curves({"one": [tmp_path]})
    assert all(tick == round(tick) for axis in figure.axes for tick in axis.get_xticks())

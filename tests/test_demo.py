"""The demo end to end, shortened, and its report."""

from __future__ import annotations

import base64
import re
import sys
from pathlib import Path

import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import demo
import report


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The folder of a demo of one seed and three epochs."""
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        whole = demo.Demo.command
        patch.setattr(
            demo.Demo,
            "command",
            lambda self, *args: [*whole(self, *args), "OPTIM.MAX_EPOCH", "3"],
        )
        argv = ["demo.py", "--root", str(folder / "data"), "--output-dir", str(folder / "out")]
        patch.setattr(sys, "argv", [*argv, "--seeds", "1"])
        assert demo.main() == 0
        before = (folder / "out/CoOp/seed1/log.txt").read_text()
        assert demo.main() == 0  # finished runs are found, not run again
        logs = sorted((folder / "out/CoOp/seed1").glob("log.txt*"))
        assert (folder / "out/CoOp/seed1/log.txt").read_text() == before
        assert all("epoch [1/3]" not in log.read_text() for log in logs if log.name != "log.txt")
    return folder / "out"


def test_the_table_has_the_methods_and_their_controls(page):
    table = pd.read_csv(page / "results.csv").set_index("method")
    assert list(table.index) == [
        "zero-shot CLIP",
        "CoOp",
        "CoOp_AnchorOPT",
        "CoOp_AnchorOPT, identity matrix",
        "CoOp, averaged with zero-shot on new",
        "anchor prompt alone",
    ]
    for method, folder in (("CoOp", "CoOp"), ("CoOp_AnchorOPT", "CoOp_AnchorOPT")):
        log = (page / folder / "seed1/log.txt").read_text()
        (logged,) = re.findall(r"\* accuracy: ([\d.]+)%", log)
        assert table.loc[method, "base"] == pytest.approx(float(logged), abs=0.06)
    harmonic = 2 / (1 / table["base"] + 1 / table["new"])
    assert table["HM"].tolist() == pytest.approx(harmonic.tolist(), abs=0.02)


def test_the_page_needs_nothing_beside_it(page):
    text = (page / "report.html").read_text()
    assert not re.findall(r"(?:src|href)=\"(?!data:)", text)
    pictures = re.findall(r"data:image/png;base64,([^\"]+)", text)
    assert [base64.b64decode(picture)[:4] for picture in pictures] == [b"\x89PNG"] * 2
    for method in pd.read_csv(page / "results.csv")["method"]:
        assert f"<td>{method}</td>" in text


def test_mean_and_sample_deviation_over_seeds():
    rows = [{"method": "m", "seed": s, "base": 50.0 + s, "new": 50.0 + s} for s in (1, 2, 3)]
    assert report.summary(report.results_table(rows)).loc["m"].tolist() == ["52.0 ± 1.0"] * 3


def test_a_harmonic_mean_of_nothing_is_zero():
    rows = [{"method": "m", "seed": 1, "base": 0.0, "new": 0.0}]
    assert report.results_table(rows)["HM"].tolist() == [0.0]

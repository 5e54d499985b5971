"""scripts/parse_test_res.py prints the lines and numbers of the public script."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from anchoropt_plugin import UserError

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import parse_test_res

LOG = """* accuracy: 1.0%
{signal}
* total: 1,000
* correct: 900
* accuracy: {accuracy}%
* macro_f1: 50.5%
Elapsed: 0:00:02
"""


def write(folder, *accuracies, signal="Finish training\n=> result"):
    for number, accuracy in enumerate(accuracies, start=1):
        log = folder / f"seed{number}" / "log.txt"
        log.parent.mkdir(parents=True)
        log.write_text(LOG.format(accuracy=accuracy, signal=signal))
    return folder


def test_mean_and_deviation_over_seeds(tmp_path, capsys):
    folder = write(tmp_path / "run", 90.0, 91.5, 93.6)
    parse_test_res.main([str(folder)])
    assert capsys.readouterr().out.splitlines() == [
        f"Parsing files in {folder}",
        *(
            f"file: {folder}/seed{number}/log.txt. accuracy: {accuracy}%. "
            for number, accuracy in enumerate(("90.00", "91.50", "93.60"), start=1)
        ),
        "===",
        f"Summary of directory: {folder}",
        f"* accuracy: 91.70% +- {np.std([90.0, 91.5, 93.6]):.2f}%",
        "===",
    ]


def test_interval_keyword_and_test_logs(tmp_path, capsys):
    folder = write(tmp_path / "run", 90.0, 92.0, signal="=> result")
    parse_test_res.main([str(folder), "--test-log", "--ci95"])
    half = 1.96 * np.std([90.0, 92.0]) / np.sqrt(2)
    assert f"* accuracy: 91.00% +- {half:.2f}%" in capsys.readouterr().out
    parse_test_res.main([str(folder), "--test-log", "--keyword", "macro_f1"])
    assert "* macro_f1: 50.50% +- 0.00%" in capsys.readouterr().out


def test_several_experiments(tmp_path, capsys):
    write(tmp_path / "runs/a", 90.0)
    write(tmp_path / "runs/b", 80.0, 82.0)
    parse_test_res.main([str(tmp_path / "runs"), "--multi-exp"])
    assert capsys.readouterr().out.endswith("Average performance\n* accuracy: 85.50%\n")


def test_what_cannot_be_parsed(tmp_path):
    write(tmp_path / "tests", 90.0, signal="=> result")
    for words, message in (
        ([str(tmp_path / "tests")], "--test-log for logs of --eval-only"),
        ([str(tmp_path / "nowhere")], "is not a folder"),
        ([str(tmp_path)], "log.txt"),
        (["--nonsense"], "required|no flag"),
    ):
        with pytest.raises(UserError, match=message):
            parse_test_res.main(words)

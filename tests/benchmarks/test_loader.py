"""The benchmark of the loader: it runs, and it notices an image that differs."""

from __future__ import annotations

import json

from anchoropt_plugin.dassl_compat.data.transforms.pixel_table import PixelTable
from benchmarks import loader

QUICK = ["--images", "2", "--epochs", "2"]


def test_both_ways_are_measured_and_agree(tmp_path, capsys):
    file = tmp_path / "out" / "loader.json"
    assert loader.main([*QUICK, "--json", str(file)]) == 0
    plain, ours = json.loads(file.read_text(encoding="utf-8"))
    assert (plain["name"], ours["name"]) == ("plain", "ours")
    assert min(plain["first"], plain["later"], ours["first"], ours["later"]) > 0
    assert "at most 1 GiB: the first 1,908 are kept" in capsys.readouterr().out


def test_an_image_that_differs_is_an_error(monkeypatch, capsys):
    look_up = PixelTable.__call__
    monkeypatch.setattr(PixelTable, "__call__", lambda *args: look_up(*args) + 1e-6)
    assert loader.main(QUICK) == 2
    assert "epoch 1: an image of ours differs" in capsys.readouterr().err


def test_impossible_arguments_are_one_line(capsys):
    assert loader.main(["--epochs", "1"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1

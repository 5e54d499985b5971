"""``predictions.csv``: written whole, read strictly, with any path and any class name."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from anchoropt_plugin import UserError
from anchoropt_plugin.files.predictions import (
    PREDICTIONS,
    read_images,
    read_predictions,
    write_predictions,
)
from anchoropt_plugin.process import distributed

HEADER = "image,truth,prediction,probability"
ROWS = [
    ("/a/one.jpg", "red, ripe", ["red, ripe", 'say "cheese"', "狐"], [0.5, 0.3, 0.2]),
    ("/a/new\nline.jpg", "狐", ['say "cheese"', "狐", "red, ripe"], [1 / 3, 1 / 3, 1 / 3]),
]


def rows(kind=np.float32):
    return [(image, truth, top, np.array(values, kind)) for image, truth, top, values in ROWS]


def test_what_was_written_is_read_and_numbers_come_back_to_the_bit(tmp_path):
    write_predictions(tmp_path, rows())
    found = read_predictions(tmp_path / PREDICTIONS)
    assert list(found.images) == read_images(tmp_path / PREDICTIONS) == [row[0] for row in ROWS]
    assert list(found.truth) == [row[1] for row in ROWS]
    assert list(found.top) == [row[2] for row in ROWS]
    assert np.array_equal(np.float32(found.probability), np.float32([0.5, 1 / 3]))
    with (tmp_path / PREDICTIONS).open(newline="") as file:
        first = next(csv.DictReader(file))
    assert (first["prediction_2"], first["probability_2"]) == ('say "cheese"', "0.3")
    assert "prediction_4" not in first


def test_an_end_in_the_middle_leaves_the_file_that_was_there(tmp_path):
    def killed():
        yield rows()[0]
        raise KeyboardInterrupt

    write_predictions(tmp_path, rows())
    before = (tmp_path / PREDICTIONS).read_bytes()
    with pytest.raises(KeyboardInterrupt):
        write_predictions(tmp_path, killed())
    assert [path.name for path in tmp_path.iterdir()] == [PREDICTIONS]
    assert (tmp_path / PREDICTIONS).read_bytes() == before


def test_only_the_main_process_writes_and_only_into_a_folder_that_exists(tmp_path, monkeypatch):
    write_predictions(tmp_path / "none", rows())
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    write_predictions(tmp_path, rows())
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_is_no_text_does_not_end_the_test(tmp_path):
    path = b"/a/caf\xe9.jpg".decode(errors="surrogateescape")
    write_predictions(tmp_path, [(path, "cat", ["cat"], [1.0])])
    assert b"/a/caf\xe9.jpg,cat,cat,1.0\n" in (tmp_path / PREDICTIONS).read_bytes()
    with pytest.raises(UserError, match=r"predictions\.csv is not text in UTF-8"):
        read_predictions(tmp_path / PREDICTIONS)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", r"has no column 'image': its first line must name the columns image, truth, pred"),
        ("image,truth,prediction\na,b,c\n", r"has no column 'probability'"),
        (f"{HEADER}\n", r"predictions\.csv has no images"),
        (f"{HEADER}\na,b,c,0.5\na,b\n", r"line 3: the probability is '', but must be from 0 to 1"),
        (f"{HEADER}\na, ,c,0.5\n", r"line 2 has no truth: leave the line out"),
        (f"{HEADER}\na,b,c,50%\n", r"line 2: the probability is '50%'"),
        (f"{HEADER}\na,b,c,nan\n", r"line 2: the probability is 'nan'"),
        (f"{HEADER}\na,b,c,1.5\n", r"line 2: the probability is '1\.5'"),
        (f"{HEADER}\na,b,{'c' * 200_000},1\n", r"line 2: not valid csv: field larger"),
    ],
)
def test_what_is_no_table_of_predictions_is_refused(tmp_path, text, says):
    (tmp_path / PREDICTIONS).write_text(text)
    with pytest.raises(UserError, match=says):
        read_predictions(tmp_path / PREDICTIONS)


def test_a_table_of_ones_own_needs_four_columns_in_any_order(tmp_path):
    (tmp_path / "own.csv").write_text("note,probability,prediction,truth,image\n,1,b,a,x.jpg\n\n")
    found = read_predictions(tmp_path / "own.csv")
    assert (found.images, found.truth, found.top) == (["x.jpg"], ["a"], [["b"]])
    assert found.probability == [1.0]

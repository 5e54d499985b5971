"""``predictions.csv``: written whole, read strictly, with any path and any class name."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from anchoropt_plugin import UserError
from anchoropt_plugin.files.predictions import (
    PREDICTIONS,
    check_unedited,
    read_images,
    read_predictions,
    write_predictions,
)
from anchoropt_plugin.process import distributed

HEADER = "image,truth,prediction,probability"
RANKED = f"{HEADER},prediction_2,probability_2,prediction_3,probability_3"
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
        ("", r"has no column 'image': its first line must name image, truth, pred"),
        ("image,truth,prediction\na,b,c\n", r"has no column 'probability'"),
        (f"{HEADER}\n", r"predictions\.csv has no images"),
        (f"{HEADER}\na,b,c,0.5\na,b\n", r"line 3: the probability is '', but must be from 0 to 1"),
        (f"{HEADER}\na, ,c,0.5\n", r"line 2 has no truth: leave the line out"),
        (f"{HEADER}\na,b,c,50%\n", r"line 2: the probability is '50%'"),
        (f"{HEADER}\na,b,c,nan\n", r"line 2: the probability is 'nan'"),
        (f"{HEADER}\na,b,c,1.5\n", r"line 2: the probability is '1\.5'"),
        (f"{HEADER}\na,b,{'c' * 200_000},1\n", r"line 2: not valid csv: field larger"),
        (f"{HEADER}\na,b,c,0,973\n", r"line 2 has more values .*, and write numbers with a point"),
        (f"{HEADER}\na,b,,0.5\n", r"line 2: a prediction is empty: fill it in, or leave"),
        (f"image,truth,{HEADER}\na,b,c,d,e,1\n", r"has two columns 'image': rename or remove"),
        (f"{RANKED}\na,b,c,0.2,d,0.7\n", r"line 2: a less likely class has a higher probability"),
        (f"{RANKED}\na,b,c,0.5,d,0.1,c,0\n", r"line 2: 'c' is predicted twice: give each class"),
        (f"{RANKED}\na,b,c,0.5,,,d,0.1\n", r"line 2: a prediction is empty: fill it in"),
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


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("a,b,c,1\nd,b,c,1\na,b,b,1\n", r"line 4: the image a is in line 2 already: remove a line"),
        ("a,red fox,cat,1\nb,cat,Red_Fox,1\n", r"line 3: the class 'Red_Fox' is 'red fox' above"),
        ("a,cat,cat ,1\n", r"line 2: the class 'cat ' is 'cat' above: give a class the same name"),
        ("a,1,1.0,1\n", r"line 2: the class '1\.0' is '1' above"),
        ("/a/b,c,c,1\n/a/./b,c,c,1\n", r"line 3: the image /a/b is in line 2 already"),
        ("a,0,cat,1\nb,1,dog,1\n", r"no prediction is the name of a truth, such as 'cat' and '0'"),
    ],
)
def test_a_table_of_ones_own_has_an_image_once_and_one_name_of_a_class(tmp_path, lines, says):
    (tmp_path / "own.csv").write_text(f"{HEADER}\n{lines}")
    read_predictions(tmp_path / "own.csv")  # as the test of a data set may write it
    with pytest.raises(UserError, match=says):
        read_predictions(tmp_path / "own.csv", is_own=True)


def test_probabilities_in_a_table_of_ones_own_add_up_to_1_at_most(tmp_path):
    (tmp_path / "own.csv").write_text(f"{RANKED}\na,b,b,0.5,c,0.5,d,0.0009\na,b,b,1,,,,\n")
    read_predictions(tmp_path / "own.csv")
    (tmp_path / "own.csv").write_text(f"{RANKED}\na,b,b,0.6,c,0.5,,\n")
    read_predictions(tmp_path / "own.csv")
    with pytest.raises(UserError, match=r"line 2: the probabilities add up to 1\.1, but must"):
        read_predictions(tmp_path / "own.csv", is_own=True)


def test_the_last_columns_of_a_line_may_be_empty(tmp_path):
    (tmp_path / "own.csv").write_text(f"{RANKED}\na,b,c,0.5,d,0.5,,\n,b,b,1\n,c,c,1\n")
    found = read_predictions(tmp_path / "own.csv", is_own=True)
    assert found.top == [["c", "d"], ["b"], ["c"]]


def test_the_digest_changes_with_a_value_and_not_with_the_place(tmp_path):
    written = []
    for place in ("/a", "/another/place"):
        moved = [(image.replace("/a", place), *rest) for image, *rest in rows()]
        written.append(write_predictions(tmp_path, moved))
        check_unedited(tmp_path / PREDICTIONS, written[-1])
    assert len({*written}) == 1
    path = tmp_path / PREDICTIONS
    path.write_text(path.read_text().replace("\n", "\r\n"))  # as Windows saves it
    check_unedited(path, written[0])
    check_unedited(path, None)  # of an earlier version
    path.write_text(path.read_text().replace("0.5", "0.6"))
    with pytest.raises(UserError, match="was changed, or copied from elsewhere"):
        check_unedited(path, written[0])

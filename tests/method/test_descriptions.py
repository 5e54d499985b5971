"""Reading class descriptions."""

from __future__ import annotations

import json

import pytest

from anchoropt_plugin import UserError
from anchoropt_plugin.method.descriptions import TEMPLATES, from_templates, read


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_names_match_whatever_their_case_and_underscores(tmp_path):
    file = write(tmp_path / "d.json", {"Golden_Retriever": ["a", "b", "c"], "cat": ["d"]})
    assert read(file, ["cat", "golden retriever"], limit=2) == [["d"], ["a", "b"]]


def test_names_of_the_public_data_sets_match_however_they_are_written(tmp_path):
    names = ["Apply_Eye_Makeup", "2012 Ram C/V Cargo Van Minivan", "Highway or Road", "F/A-18"]
    ways = (str.lower, str.upper, lambda name: name.replace("_", " "), lambda name: f" {name}_")
    ways += (lambda name: name.replace(" ", "_"), lambda name: name.replace("_", "  "))
    for way in ways:
        file = write(tmp_path / "d.json", {way(name): [name] for name in [*names, "unknown"]})
        assert read(file, names, limit=5) == [[name] for name in names]


def test_two_classes_of_one_name_share_their_sentences(tmp_path):
    # As ImageNet's "missile", which is there twice.
    file = write(tmp_path / "d.json", {"missile": ["a"], "tench": ["b"]})
    assert read(file, ["missile", "tench", "missile"], limit=5) == [["a"], ["b"], ["a"]]


def test_a_byte_order_mark_does_no_harm(tmp_path):
    (tmp_path / "d.json").write_text('{"cat": ["a"]}', encoding="utf-8-sig")
    assert read(tmp_path / "d.json", ["cat"], limit=5) == [["a"]]


def test_every_class_without_a_sentence_is_named_as_the_data_set_has_it(tmp_path):
    names = [f"Class_{number}" for number in range(300)]
    file = write(tmp_path / "d.json", {"class 7": ["a"], "CLASS_8": []})
    with pytest.raises(UserError, match="no description of 299 of 300 classes") as error:
        read(file, names, 10)
    listed = str(error.value).partition("(")[2].partition(")")[0].split(", ")
    assert listed == [name for name in names if name != "Class_7"]


def test_templates_are_filled_with_plain_names():
    (texts,) = from_templates(["golden_retriever"], limit=10)
    assert len(texts) == len(TEMPLATES) == 10
    assert all("golden retriever" in text for text in texts)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"cat": ["a"]}, r"no description of 2 of 3 classes \(dog, red panda\)"),
        ({"cat": ["a"], "dog": [], "red panda": ["a"]}, r"1 of 3 classes \(dog\)"),
        ({"cat": ["a"], "Red_Panda": ["a"], "red panda": ["b"]}, "'Red_Panda' and 'red panda'"),
        ({"cat": ["A photo of a {}."]}, r"hold a template, 'A photo of a \{\}\.'"),
        ("[" * 100000, "not valid json"),
        ("{not json", "not valid json"),
        (["cat"], "not of the form"),
        ({"cat": "a"}, "not of the form"),
        ({"cat": [1]}, "not of the form"),
        ({"cat": [" "]}, "not of the form"),
    ],
)
def test_a_file_that_will_not_do_is_named_with_what_is_wrong(tmp_path, content, message):
    file = write(tmp_path / "d.json", content)
    with pytest.raises(UserError, match=message) as error:
        read(file, ["cat", "dog", "red panda"], 10)
    assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"absent\.json: No such file"):
        read(tmp_path / "absent.json", ["cat"], 10)

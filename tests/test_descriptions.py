"""Reading class descriptions."""

from __future__ import annotations

import json

import pytest

from anchoropt_plugin import UserError
from anchoropt_plugin.descriptions import TEMPLATES, from_templates, read


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_names_match_whatever_their_case_and_underscores(tmp_path):
    file = write(tmp_path / "d.json", {"Golden_Retriever": ["a", "b", "c"], "cat": ["d"]})
    assert read(file, ["cat", "golden retriever"], limit=2) == [["d"], ["a", "b"]]


def test_templates_are_filled_with_plain_names():
    (texts,) = from_templates(["golden_retriever"], limit=10)
    assert len(texts) == len(TEMPLATES) == 10
    assert all("golden retriever" in text for text in texts)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"cat": ["a"]}, r"no description of 2 classes \(dog, red panda\)"),
        ({"cat": ["a"], "dog": [], "red panda": ["a"]}, r"1 classes \(dog\)"),
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

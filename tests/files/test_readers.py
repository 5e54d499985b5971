"""A list of class names is read as it stands, or refused if it is evidently another format."""

from __future__ import annotations

import pytest

from anchoropt_plugin import UserError
from anchoropt_plugin.files.readers import read_names

NAMES = ["red fox", "corgi, Cardigan", "1,000 island dressing", "F-16A/B", "s'mores", "café #5"]


def test_class_names_of_any_kind(tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(["", *NAMES, " owl "]), encoding="utf-8")
    assert read_names(tmp_path / "names.txt") == [*NAMES, "owl"]


@pytest.mark.parametrize(
    "line",
    [
        *('["fox", "owl"]', "[", '"fox",', '{"fox": ["a fox."]}', "fox,", "'fox'", "# animals"),
        *("label,name", "0,fox", "fox,0", "0;fox", "0\tfox", "n01440764 tench"),
    ],
)
def test_what_is_no_list_of_names_is_refused(tmp_path, line):
    (tmp_path / "names").write_text(f"badger\n{line}\n")
    with pytest.raises(UserError, match=r"names, line 2: .* is not the name of a class alone"):
        read_names(tmp_path / "names")

"""The embedded data sets: layout, content, and atomic writing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from anchoropt_plugin.datasets.embedded import (
    DIGITS_SPLIT,
    SHAPES_SPLIT,
    write_digits,
    write_shapes,
)
from anchoropt_plugin.datasets.synthetic import BENCHMARK, DIGITS
from anchoropt_plugin.errors import UserError

Split = dict[str, list[tuple[str, int, str]]]


def read_split(path: Path) -> Split:
    return json.loads(path.read_text(encoding="utf-8"))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_digits(root / "digits")
    write_shapes(root / "shapes")
    return root


@pytest.mark.parametrize(
    ("name", "split_file", "classes"),
    [
        ("digits", DIGITS_SPLIT, list(DIGITS)),
        ("shapes", SHAPES_SPLIT, [str(triple) for triple in BENCHMARK]),
    ],
)
def test_layout(name: str, split_file: str, classes: list[str], root: Path) -> None:
    split = read_split(root / name / split_file)
    assert list(split) == ["train", "val", "test"]
    items = [item for part in split.values() for item in part]
    paths = {path for path, _, _ in items}
    assert len(paths) == len(items)
    assert paths == {
        path.relative_to(root / name / "images").as_posix()
        for path in (root / name / "images").rglob("*.png")
    }
    assert {path.name for path in (root / name).iterdir()} == {"images", split_file}
    for path, label, class_name in items:
        assert class_name == classes[label]
        assert Path(path).parts[0] == class_name.replace(" ", "_")
    for part, at_least in (("train", 16), ("val", 4), ("test", 20)):
        labels = [label for _, label, _ in split[part]]
        assert min(labels.count(label) for label in range(len(classes))) >= at_least
        assert labels == sorted(labels)


def test_digits_are_sklearns(root: Path) -> None:
    split = read_split(root / "digits" / DIGITS_SPLIT)
    assert [len(part) for part in split.values()] == [1078, 180, 539]
    bunch = load_digits()
    written = np.stack(
        [
            np.asarray(Image.open(root / "digits" / "images" / path))
            for part in split.values()
            for path, label, _ in part
            if label == 3
        ]
    )
    assert written.dtype == np.uint8
    assert np.array_equal(np.rint(written / 255 * 16), bunch.images[bunch.target == 3])


def test_shapes_are_different_colour_images(root: Path) -> None:
    split = read_split(root / "shapes" / SHAPES_SPLIT)
    assert [len(part) for part in split.values()] == [48 * 20, 48 * 8, 48 * 24]
    images = [
        Image.open(root / "shapes" / "images" / path)
        for part in split.values()
        for path, label, _ in part
        if label == 0
    ]
    assert {(image.mode, image.size) for image in images} == {("RGB", (32, 32))}
    assert len({image.tobytes() for image in images}) == 52


@pytest.mark.parametrize("write", [write_digits, write_shapes])
def test_writing_is_deterministic(
    write: Callable[[Path], None], root: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "deep" / "again"
    write(folder)
    assert contents(folder) == contents(root / write.__name__.removeprefix("write_"))


def test_existing_data_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / DIGITS_SPLIT).write_text("mine")
    write_digits(tmp_path)
    assert contents(tmp_path) == {DIGITS_SPLIT: b"mine"}


def test_a_folder_of_something_else_is_reported(tmp_path: Path) -> None:
    folder = tmp_path / "digits"
    folder.mkdir()
    (folder / "diary.txt").write_text("mine")
    with pytest.raises(UserError, match=f"no {DIGITS_SPLIT}"):
        write_digits(folder)
    assert contents(tmp_path) == {"digits/diary.txt": b"mine"}


def test_an_interrupted_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []

    def give_up(image: Image.Image, path: Path) -> None:
        written.append(path)
        if len(written) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", give_up)
    with pytest.raises(KeyboardInterrupt):
        write_digits(tmp_path / "digits")
    assert list(tmp_path.iterdir()) == []


def test_of_two_writers_the_first_wins(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename
    renamed: list[Path] = []

    def overtaken(draft: Path, folder: Path) -> Path:
        monkeypatch.setattr(Path, "rename", rename)
        write_digits(folder)  # another process finishes just before the last step
        (folder / "theirs").touch()
        renamed.append(draft)
        return rename(draft, folder)

    monkeypatch.setattr(Path, "rename", overtaken)
    write_digits(tmp_path / "d")
    assert len(renamed) == 1
    assert contents(tmp_path / "d") == {**contents(root / "digits"), "theirs": b""}
    assert [path.name for path in tmp_path.iterdir()] == ["d"]

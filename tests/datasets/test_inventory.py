"""scripts/data.py: complete data sets, missing parts, broken images, wrong roots."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest
from PIL import Image
from rich.console import Console

from anchoropt_plugin import UserError
from anchoropt_plugin.datasets import inventory as inventory_module
from anchoropt_plugin.datasets.downloads import DOWNLOADS
from anchoropt_plugin.datasets.inventory import inventory, show
from anchoropt_plugin.datasets.table import TABLE
from scripts import data
from tests.datasets.small_datasets import write_all, write_small

ROWS = {row.name: row for row in TABLE}
CONFIGS = Path(data.__file__).parents[1] / "configs" / "datasets"


@pytest.fixture
def small_counts(monkeypatch):
    """The small data sets have four classes, ImageNet-A and -R three."""
    few = {"ImageNetA": 3, "ImageNetR": 3}
    rows = [replace(row, n_classes=few.get(row.name, 4)) for row in TABLE]
    monkeypatch.setattr(inventory_module, "TABLE", rows)


def text_of(findings):
    console = Console(width=80)
    with console.capture() as captured:
        show(findings, console)
    return captured.get()


def found(root, name, **settings):
    (finding,) = (item for item in inventory(root, **settings) if item.name == name)
    return finding


def test_all_data_sets(tmp_path, small_counts):
    write_all(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    findings = inventory(tmp_path, sample=3)
    assert [item.name for item in findings] == list(ROWS)
    assert {(item.state, item.opened, len(item.missing)) for item in findings} == {
        ("complete", 3, 0)
    }
    sizes = {item.row.name: (item.n_classes, *item.sizes) for item in findings}
    assert sizes["FGVCAircraft"] == (4, 24, 12, 16)
    assert sizes["ImageNet"] == (4, 40, 0, 16)
    assert sizes["ImageNetA"] == (3, 0, 0, 12)
    assert sorted(tmp_path.rglob("*")) == before, "the inventory must not write"


def test_no_data_set(tmp_path):
    findings = inventory(tmp_path)
    assert {item.state for item in findings} == {"missing"}
    text = text_of(findings)
    for downloads in DOWNLOADS.values():
        for item in downloads:
            assert f"{', '.join(item.paths)} from {item.url}" in text
            assert item.note in text


def test_the_classes_of_a_public_data_set_are_counted(tmp_path, capsys):
    write_small(tmp_path, "DescribableTextures")
    finding = found(tmp_path, "DescribableTextures")
    assert (finding.state, finding.n_classes) == ("incomplete", 4)
    assert "DescribableTextures has 47 classes, but 4 are in" in text_of([finding])
    assert data.main(["--root", str(tmp_path)]) == 1
    counts = [row.n_classes for row in TABLE]
    assert counts == [1000, 100, 37, 196, 102, 101, 100, 397, 47, 10, 101, 1000, 1000, 200, 200]


def own_images(root):
    for name in ("fox", "eel"):
        (root / name).mkdir(parents=True)
        for number in range(5):
            Image.effect_noise((20, 20), 50).save(root / name / f"{number}.png")
    (root / "eel" / "note.txt").touch()


def test_a_data_set_given_by_its_yaml(tmp_path, capsys):
    words = ["--root", str(tmp_path / "own"), "--dataset-config-file"]
    words.append(str(CONFIGS / "image_folder.yaml"))
    assert data.main(words) == 1
    assert "missing" in capsys.readouterr().out
    own_images(tmp_path / "own")
    assert data.main([*words, "--sample", "2"]) == 0
    said = capsys.readouterr().out
    assert "complete" in said and "1 file(s) in" in said and "eel/note.txt" in said
    assert re.search(r"complete.*\b10 *│", said)  # all of one's own images are opened
    for path in ("fox/1.png", "fox/4.png", "eel/0.png"):
        file = tmp_path / "own" / path
        file.write_bytes(file.read_bytes()[:100])
    assert data.main(words) == 1
    said = capsys.readouterr().out
    assert "damaged" in said and "3 of 10 opened images cannot be read" in said
    assert all(said.count(path) == 1 for path in ("fox/1.png", "fox/4.png", "eel/0.png"))


def test_a_public_data_set_given_by_its_yaml(tmp_path, capsys, small_counts):
    write_small(tmp_path, "EuroSAT")
    words = ["--root", str(tmp_path), "--dataset-config-file", str(CONFIGS / "eurosat.yaml")]
    assert data.main(words) == 0
    assert "complete" in capsys.readouterr().out
    (tmp_path / "eurosat" / "2750" / "Forest" / "Forest_3.jpg").write_bytes(b"x")
    assert data.main([*words, "--sample", "1000"]) == 1
    assert "damaged" in capsys.readouterr().out


def test_a_missing_split_file_is_no_fault(tmp_path, small_counts):
    write_small(tmp_path, "SUN397", split_file=False)
    finding = found(tmp_path, "SUN397")
    assert finding.state == "complete"
    assert [item.paths for item in finding.missing] == [("split_zhou_SUN397.json",)]
    assert "every seed divides the images differently" in text_of([finding])


def test_only_missing_files_are_listed(tmp_path):
    write_small(tmp_path, "SUN397", split_file=False)
    folder = tmp_path / "sun397"
    (folder / "Training_01.txt").unlink()
    finding = found(tmp_path, "SUN397")
    assert finding.state == "unusable"
    assert [item.paths for item in finding.missing] == [
        ("Training_01.txt",),
        ("split_zhou_SUN397.json",),
    ]
    text = text_of([finding])
    assert "lacks split_zhou_SUN397.json or Training_01.txt\n" in text
    assert "dead since 2025, see CoOp issue #90" in text
    assert "not needed with split_zhou_SUN397.json" in text
    # With a split file, annotations are not needed.
    (folder / "split_zhou_SUN397.json").write_text('{"train": [], "test": []}')
    assert not found(tmp_path, "SUN397").missing


def test_missing_images(tmp_path):
    write_small(tmp_path, "EuroSAT")
    (tmp_path / "eurosat" / "2750" / "Forest" / "Forest_3.jpg").unlink()
    finding = found(tmp_path, "EuroSAT")
    assert finding.state == "unusable"
    assert "1 of 44 images" in finding.fault and "Forest_3.jpg" in finding.fault


def test_truncated_images_are_listed(tmp_path):
    parts = write_small(tmp_path, "Food101")
    images = [tmp_path / "food-101" / "images" / row[0] for row in parts["all"][::13]]
    for image in images:
        image.write_bytes(image.read_bytes()[:300])
    finding = found(tmp_path, "Food101", sample=40)
    assert (finding.state, finding.opened, len(finding.broken)) == ("damaged", 40, len(images))
    text = text_of([finding])
    assert all(str(image) in text for image in images)
    assert f"{len(images)} of 40 opened images cannot be read" in text
    assert found(tmp_path, "Food101", sample=0).opened == 0


def test_the_command(tmp_path, capsys, small_counts):
    write_small(tmp_path, "ImageNetR")
    assert data.main(["--root", str(tmp_path), "--sample", "2"]) == 0
    shown = capsys.readouterr()
    assert "complete" in shown.out and "missing" in shown.out and not shown.err

    for root, message in (
        ("nowhere", "nowhere is not a folder"),
        ("imagenet-rendition", "the folder of one data set"),
    ):
        with pytest.raises(UserError, match=message):
            data.main(["--root", str(tmp_path / root)])
    with pytest.raises(UserError, match="--sample is -1"):
        data.main(["--root", str(tmp_path), "--sample", "-1"])


@pytest.mark.parametrize("name", ROWS)
def test_every_file_of_a_data_set_has_a_download(name):
    row = ROWS[name]
    named = {PurePosixPath(path) for item in DOWNLOADS[name] for path in item.paths}
    images = [PurePosixPath(row.images, part) for part in row.image_folders or (".",)]
    assert set(images) <= named
    assert not row.split_file or PurePosixPath(row.split_file) in named
    for file in row.annotations if name != "UCF101" else ():  # public code names no source of these
        assert any(PurePosixPath(file).is_relative_to(path) for path in named)

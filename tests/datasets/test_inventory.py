"""scripts/data.py: complete data sets, missing parts, broken images, wrong roots."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest
from rich.console import Console

from anchoropt_plugin import UserError
from datasets.downloads import DOWNLOADS
from datasets.inventory import inventory, show
from datasets.table import TABLE
from scripts import data
from tests.datasets.small_datasets import write_all, write_small

ROWS = {row.name: row for row in TABLE}


def text_of(findings):
    console = Console(width=80)
    with console.capture() as captured:
        show(findings, console)
    return captured.get()


def found(root, name, **settings):
    (finding,) = (item for item in inventory(root, **settings) if item.row.name == name)
    return finding


def test_all_data_sets(tmp_path):
    write_all(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    findings = inventory(tmp_path, sample=3)
    assert [item.row.name for item in findings] == list(ROWS)
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


def test_a_missing_split_file_is_no_fault(tmp_path):
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


def test_the_command(tmp_path, capsys):
    write_small(tmp_path, "ImageNetR")
    data.main(["--root", str(tmp_path), "--sample", "2"])
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

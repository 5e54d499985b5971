"""Names on the Hugging Face hub and in open_clip's list, up to the download function."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from anchoropt_plugin.encoders.clip_models import load_clip
from anchoropt_plugin.errors import UserError

from .foreign_clips import model_cfg, new, open_clip, write_folder
from .test_other_clips import same

huggingface_hub = pytest.importorskip("huggingface_hub")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the hub: OWNER/NAME/file."""

    def download(repository: str, file: str, *, cache_dir: str | None) -> str:
        there = tmp_path / "hub" / repository
        if not there.is_dir():
            raise OSError(f"no repository {repository}\nURL: …")
        if not (there / file).is_file():
            raise huggingface_hub.utils.EntryNotFoundError(file)
        here = Path(cache_dir or tmp_path / "cache") / repository / file
        here.parent.mkdir(parents=True, exist_ok=True)
        return str(shutil.copy(there / file, here))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return tmp_path / "hub"


@pytest.mark.parametrize("name", ["ViT, QuickGELU", "transformers, GELU"])
def test_a_repository_is_read_as_a_folder(name: str, hub: Path, tmp_path: Path) -> None:
    model = write_folder(name, hub / "me" / "mine")
    (hub / "me" / "mine" / "README.md").touch()
    loaded = load_clip("hf-hub:me/mine", download_root=str(tmp_path / "root"))
    assert same(loaded, model) and loaded.preparation is not None
    found = {path.name for path in (tmp_path / "root" / "me" / "mine").iterdir()}
    assert "README.md" not in found and len(found) in (2, 3)


def test_a_repository_of_several_files_is_read_whole(hub: Path) -> None:
    model: Any = new("transformers, GELU")
    model.save_pretrained(hub / "me" / "large", max_shard_size="1MB")
    assert same(load_clip("hf-hub:me/large"), model)


def test_a_repository_that_is_no_clip_is_refused(hub: Path) -> None:
    (hub / "me" / "other").mkdir(parents=True)
    with pytest.raises(UserError, match=r"hf-hub:me/other could not be downloaded, or holds no"):
        load_clip("hf-hub:me/other")
    with pytest.raises(UserError, match=r"hf-hub:me/none could not be downloaded \(no repository"):
        load_clip("hf-hub:me/none")


@pytest.fixture
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A model in open_clip's list, with weights of the tag ``mine``."""
    model = new("ViT, QuickGELU")
    torch.save(model.state_dict(), tmp_path / "weights.bin")
    told = {"quick_gelu": True, "mean": (0.5, 0.5, 0.5), "std": None, "hf_hub": "me/mine/"}
    configs = {"small-quickgelu": "ViT, QuickGELU", "small": "ViT, GELU"}

    def download(found: dict[str, Any], cache_dir: str | None) -> str:
        assert found == told and cache_dir is None
        return str(tmp_path / "weights.bin")

    monkeypatch.setattr(
        open_clip,
        "get_model_config",
        lambda name: (name in configs and model_cfg(configs[name])) or None,
    )
    monkeypatch.setattr(
        open_clip, "get_pretrained_cfg", lambda name, tag: told if tag == "mine" else {}
    )
    monkeypatch.setattr(open_clip, "download_pretrained", download)
    return model


def test_weights_of_open_clips_list(listed: nn.Module, tmp_path: Path) -> None:
    loaded = load_clip("open_clip:small-quickgelu/mine")
    assert same(loaded, listed)
    assert loaded.preparation.mean == (0.5, 0.5, 0.5)
    bare = load_clip(str(tmp_path / "weights.bin"), config="open_clip:small-quickgelu")
    assert same(bare, listed)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("small/mine", "trained with QuickGELU: give open_clip:small-quickgelu/mine"),
        ("small/other", "no weights 'other' of small"),
        ("smal/mine", "no model 'smal'"),
        ("small", "no weights '' of small"),
    ],
)
def test_names_that_are_not_in_open_clips_list(listed: nn.Module, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_clip(f"open_clip:{name}")


def test_a_failed_download_is_one_line(listed: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no network\nat all")

    monkeypatch.setattr(open_clip, "download_pretrained", offline)
    with pytest.raises(UserError, match=r"could not be downloaded \(no network at all\)"):
        load_clip("open_clip:small-quickgelu/mine")


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("hf-hub:a/b", "huggingface_hub", "transformers"),
        ("open_clip:a/b", "open_clip", "open-clip"),
    ],
)
def test_a_missing_package_is_named(
    name: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"pip install 'anchoropt-plugin\[{extra}\]'"):
        load_clip(name)


def test_a_hub_name_without_its_start_is_explained() -> None:
    with pytest.raises(UserError, match="hf-hub:OWNER/NAME, open_clip:MODEL/TAG"):
        load_clip("openai/clip-vit-base-patch16")


def test_open_clip_still_has_the_list_as_it_is_read() -> None:
    """Of the names in the documentation; the download itself needs the internet."""
    names = ["ViT-B-32/laion2b_s34b_b79k"]
    names += [
        f"{name}-quickgelu/openai" for name in ("ViT-B-16", "ViT-L-14-336", "RN50", "RN50x16")
    ]
    for model, tag in (name.split("/") for name in names):
        told = open_clip.get_pretrained_cfg(model, tag)
        quick = open_clip.get_model_config(model).get("quick_gelu", False)
        assert told.get("quick_gelu", False) == quick and len(told["mean"]) == 3

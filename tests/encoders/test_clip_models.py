from __future__ import annotations

import copy
import hashlib
import logging
import os
import pickle
import subprocess
import sys
import urllib.error
import warnings
import zipfile
from pathlib import Path

import clip
import pytest
import torch
from clip.model import CLIP
from torch import nn

from anchoropt_plugin import AnchorTokens, StageOne
from anchoropt_plugin.encoders.clip_models import (
    first_twins,
    load_clip,
    to_precision,
    tokenize,
    unknown_words,
)
from anchoropt_plugin.errors import UserError
from anchoropt_plugin.files.torchscript import is_torchscript, read_torchscript

ASSETS = Path(__file__).parents[2] / "anchoropt_plugin" / "assets"


def new_vit() -> CLIP:
    torch.manual_seed(3)
    return CLIP(24, 48, 3, 64, 16, 77, 120, 128, 2, 2).float().eval()


def new_resnet() -> CLIP:
    torch.manual_seed(4)
    model = CLIP(24, 64, (1, 2, 1, 1), 8, None, 77, 120, 64, 1, 2).float()
    model.train()
    with torch.no_grad():
        model.encode_image(torch.randn(4, 3, 64, 64))  # batch norms get statistics of their own
    return model.eval()


# The archives are made with torch.jit, which warns that it is deprecated and about tracing.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore::torch.jit.TracerWarning")

MODELS = {"vit": new_vit, "resnet": new_resnet}


def save_archive(model: CLIP, path: Path, half: bool = False) -> Path:
    """An archive as OpenAI's are: traced, sizes among the buffers, optionally half precision."""
    model = copy.deepcopy(model)
    sizes = {
        "input_resolution": model.visual.input_resolution,
        "context_length": model.context_length,
        "vocab_size": model.vocab_size,
    }
    for name, size in sizes.items():
        model.__dict__.pop(name, None)
        model.register_buffer(name, torch.tensor(size))
    side = int(sizes["input_resolution"])
    example = (torch.randn(2, 3, side, side), torch.randint(0, 100, (2, 77)))
    traced = torch.jit.trace(model, example, check_trace=False)
    torch.jit.save(traced.half() if half else traced, path)
    return path


def same_features(loaded: CLIP, model: CLIP, tolerance: float = 0.0) -> bool:
    side = model.visual.input_resolution
    torch.manual_seed(0)
    image, text = torch.randn(2, 3, side, side), torch.randint(1, 100, (2, 77))
    with torch.no_grad():
        return torch.allclose(
            loaded.encode_image(image), model.encode_image(image), rtol=0, atol=tolerance
        ) and torch.allclose(
            loaded.encode_text(text), model.encode_text(text), rtol=0, atol=tolerance
        )


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("layout", ["plain", "nested", "archive"])
def test_fp32_weights_load_without_loss(kind: str, layout: str, tmp_path: Path) -> None:
    model, path = MODELS[kind](), tmp_path / "weights.pt"
    if layout == "archive":
        save_archive(model, path)
    else:
        state = model.state_dict()
        torch.save(state if layout == "plain" else {"state_dict": state, "epoch": 5}, path)
    loaded = load_clip(str(path), config="" if layout == "archive" else "openai")
    assert loaded.dtype == torch.float32
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert loaded.visual.input_resolution == model.visual.input_resolution
    assert loaded.known_tokens is None
    assert same_features(loaded, model)


@pytest.mark.parametrize("kind", MODELS)
def test_half_precision_archive_loads_as_fp32(kind: str, tmp_path: Path) -> None:
    model = MODELS[kind]()
    loaded = load_clip(str(save_archive(model, tmp_path / "half.pt", half=True)))
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.text_projection, model.text_projection.half().float())
    assert same_features(loaded, model, tolerance=0.02)


@pytest.mark.parametrize("kind", MODELS)
def test_archive_is_read_as_torch_reads_it(kind: str, tmp_path: Path) -> None:
    path = save_archive(MODELS[kind](), tmp_path / "model.pt", half=True)
    expected = torch.jit.load(path).state_dict()
    found = read_torchscript(path)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


class Odd(nn.Module):
    """What else a scripted module may hold: lists, a dict, a device, shared and tied tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.tied, self.norm = nn.Linear(3, 2), nn.Linear(3, 2), nn.BatchNorm1d(2)
        self.tied.weight = self.first.weight
        self.register_buffer("part", self.first.weight.detach().T[1:])
        self.sizes = torch.jit.Attribute([1, 2], list[int])
        self.names = torch.jit.Attribute({"a": 1}, dict[str, int])
        self.where = torch.device("cpu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.first(x).to(self.where) + self.sizes[0] + self.names["a"]


def test_scripted_archive_is_read_as_torch_reads_it(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(Odd()), tmp_path / "odd.pt")
    expected = torch.jit.load(tmp_path / "odd.pt").state_dict()
    found = read_torchscript(tmp_path / "odd.pt")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_old_style_file_loads(tmp_path: Path) -> None:
    model, path = new_vit(), tmp_path / "old.pth"
    torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False)
    assert not is_torchscript(path)
    assert same_features(load_clip(str(path), config="openai"), model)


def test_known_name_is_downloaded_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save_archive(new_vit(), tmp_path / "ViT.pt")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    served = tmp_path / digest / "ViT-B-32.pt"
    served.parent.mkdir()
    source.rename(served)
    monkeypatch.setitem(clip.clip._MODELS, "ViT-B/32", served.as_uri())
    loaded = load_clip("ViT-B/32", download_root=str(tmp_path / "cache"))
    assert same_features(loaded, new_vit())
    assert (tmp_path / "cache" / "ViT-B-32.pt").is_file()

    wrong = tmp_path / ("0" * 64) / "ViT-B-16.pt"
    wrong.parent.mkdir()
    wrong.write_bytes(served.read_bytes())
    monkeypatch.setitem(clip.clip._MODELS, "ViT-B/16", wrong.as_uri())
    with pytest.raises(UserError, match=r"ViT-B/16 could not be downloaded.*SHA256"):
        load_clip("ViT-B/16", download_root=str(tmp_path / "cache"))


def test_no_network_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(UserError, match="open_clip:RN50-quickgelu/openai") as caught:
        load_clip("RN50", download_root=str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ("ViT-B16", r"no backbone 'ViT-B16' \(did you mean 'ViT-B/16'\?\)"),
        ("Tiny", r"did you mean 'tiny'"),
        ("", "no CLIP is named: give MODEL.BACKBONE.NAME"),
        ("nothing like it", r"no backbone 'nothing like it': .*RN50"),
        ("weights/ViT-B-16.pt", r"there is no file 'weights/ViT-B-16.pt'"),
        (str(ASSETS), "has no open_clip_config.json and no config.json; it has tiny_clip.pt"),
    ],
)
def test_what_is_not_there_is_named(backbone: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_clip(backbone)


@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.4, 0.999])
def test_truncated_file_is_reported(archive: bool, share: float, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    if archive:
        save_archive(new_vit(), path)
    else:
        torch.save(new_vit().state_dict(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UserError, match=r"weights\.pt cannot be read as CLIP weights.*damaged"):
        load_clip(str(path))


def test_flipped_bytes_in_an_archive_are_found(tmp_path: Path) -> None:
    path = save_archive(new_vit(), tmp_path / "weights.pt")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 8] = bytes(255 - byte for byte in content[middle : middle + 8])
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        load_clip(str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"fc.weight": torch.zeros(2, 2)}, "no CLIP state dict: .* first keys are fc.weight"),
        ({}, "first keys are none at all"),
        ([torch.zeros(2)], "holds a list"),
        ({"state_dict": torch.zeros(2)}, "no CLIP state dict"),
        ({5: torch.zeros(2)}, "no CLIP state dict"),
    ],
)
def test_what_is_no_clip_is_reported(content: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    torch.save(content, path)
    with pytest.raises(UserError, match=message):
        load_clip(str(path))


@pytest.mark.parametrize("missing", ["ln_final.bias", "visual.ln_post.bias", "logit_scale"])
def test_missing_tensor_is_named(missing: str, tmp_path: Path) -> None:
    state = new_vit().state_dict()
    del state[missing]
    torch.save(state, tmp_path / "part.pt")
    with pytest.raises(UserError, match=missing):
        load_clip(str(tmp_path / "part.pt"), config="openai")


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    state = new_vit().state_dict()
    state["ln_final.bias"][3] = float("nan")
    torch.save(state, tmp_path / "nan.pt")
    with pytest.raises(UserError, match=r"ln_final\.bias is not finite"):
        load_clip(str(tmp_path / "nan.pt"))


def test_another_context_length_is_refused(tmp_path: Path) -> None:
    short = CLIP(24, 48, 3, 64, 16, 32, 120, 128, 2, 2)
    torch.save(short.state_dict(), tmp_path / "short.pt")
    with pytest.raises(UserError, match="reads texts of 32 tokens, but CLIP reads 77"):
        load_clip(str(tmp_path / "short.pt"))


class Hostile:
    """Unpickling this leaves a file behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.trace),)


def test_hostile_pickle_does_not_run(tmp_path: Path) -> None:
    trace, path = tmp_path / "it-ran", tmp_path / "hostile.pt"
    torch.save({**new_vit().state_dict(), "extra": Hostile(trace)}, path)
    with pytest.raises(UserError, match=r"would run code in it \(\w+\.mkdir\)"):
        load_clip(str(path))
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists()  # so the trap works


def test_hostile_archive_does_not_run(tmp_path: Path) -> None:
    trace, path = tmp_path / "it-ran", tmp_path / "hostile.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hostile/data.pkl", pickle.dumps({"extra": Hostile(trace)}))
        archive.writestr("hostile/constants.pkl", pickle.dumps(()))
    with pytest.raises(UserError, match=r"would run code in it \(\w+\.mkdir\)"):
        load_clip(str(path))
    assert not trace.exists()


def test_import_is_silent() -> None:
    run = subprocess.run(
        [sys.executable, "-W", "always", "-c", "import anchoropt_plugin.encoders.clip_models"],
        cwd=ASSETS.parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == ""
    assert [line for line in run.stderr.splitlines() if "clip" in line or "pkg_res" in line] == []


def test_loading_is_silent(tmp_path: Path) -> None:
    path = save_archive(new_vit(), tmp_path / "archive.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_clip("tiny")
        load_clip(str(path))


def test_tokenize_is_clips_own() -> None:
    texts = ["a photo of a cat.", "Ein Löwe, 2 Bären & <br> more"]
    tokens = tokenize(texts)
    assert tokens.shape == (2, 77)
    assert tokens.dtype == torch.int64
    assert torch.equal(tokens, clip.tokenize(texts).long())


def test_tokenize_counts_what_is_too_long() -> None:
    assert tokenize(["star " * 75])[0, -1] == 49407
    with pytest.raises(UserError, match=r"78 tokens.*at most 77.*'star star"):
        tokenize(["short", "star " * 76])


@pytest.mark.parametrize(
    "text", ["a cat <|endoftext|> or a dog", "<|StartOfText|>", "a&lt;|endoftext|&gt;"]
)
def test_a_text_with_clips_own_marks_is_refused(text: str) -> None:
    # clip.tokenize takes the mark: argmax would find it, and the rest would change nothing.
    with pytest.raises(UserError, match=r"one of CLIP's own marks, .*; remove it"):
        tokenize(["a cat", text])


def test_names_that_are_one_to_clip_have_the_same_tokens() -> None:
    same = [("Red_Fox", " red  fox"), ("F-16", "f - 1 6"), ("salt &amp; pepper", "Salt & Pepper")]
    other = [("red fox", "redfox"), ("fox", "foxes"), ("fox.", "fox"), ("", "a")]
    for names in (*same, *other):
        tokens = tokenize([f"a photo of a {name.replace('_', ' ')}." for name in names])
        assert (first_twins(names) is not None) == torch.equal(*tokens), names
    assert first_twins(["a", "b", "c", "B", "A"]) == (1, 3)


def test_a_whole_clip_knows_all_words() -> None:
    assert unknown_words(new_vit(), ["a giraffe"]) == []


def test_the_default_dtype_changes_neither_a_clip_nor_anchors() -> None:
    def made() -> list[torch.Tensor]:
        clip = load_clip("tiny")
        learned = AnchorTokens.learn(clip, ["cat"], [["a small cat."]], StageOne(epochs=2))
        torch.manual_seed(0)
        anchors = [learned.values, AnchorTokens.random(clip, 2).values]
        features = learned.class_features(clip, ["cat", "dog"])
        return [*clip.state_dict().values(), *anchors, features]

    wanted = made()
    torch.set_default_dtype(torch.float64)
    try:
        found = made()
    finally:
        torch.set_default_dtype(torch.float32)
    for x, y in zip(found, wanted, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-7)


def test_fp16_is_clips_own_conversion() -> None:
    model = to_precision(new_vit(), "fp16", "meta")  # the CPU would make it fp32
    assert model.visual.conv1.weight.dtype == torch.float16
    assert model.text_projection.dtype == torch.float16
    assert model.ln_final.weight.dtype == torch.float32
    assert model.visual.conv1.weight.device.type == "meta"


@pytest.mark.parametrize("precision", ["fp32", "amp"])
def test_fp32_and_amp_keep_float_weights(precision: str) -> None:
    model = to_precision(new_vit().half(), precision, "meta")
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(("precision", "lines"), [("fp16", 1), ("amp", 1), ("fp32", 0)])
def test_cpu_is_always_fp32(precision: str, lines: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "anchoropt_plugin"):
        model = to_precision(new_vit().half(), precision, "cpu")
    assert model.dtype == torch.float32
    assert len(caplog.records) == lines
    assert all(precision in record.getMessage() for record in caplog.records)


def test_unknown_precision_is_named() -> None:
    with pytest.raises(UserError, match=r"'fp61' \(did you mean 'fp16'\?\)"):
        to_precision(new_vit(), "fp61", "cpu")

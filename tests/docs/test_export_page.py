"""The examples of docs/export.md run as they are written, and give the probabilities of a test."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import clip
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import train
from anchoropt_plugin import load_clip, load_predictor
from anchoropt_plugin.files.images import read_image

from ..trainers.runs import command

PAGE = (Path(train.__file__).parent / "docs/export.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"\n##+ ([^\n]+)\n(?:(?!\n##).)*?```python\n(.*?)```", PAGE, re.DOTALL))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with the files that the examples read, and the class probabilities."""
    pytest.importorskip("onnxruntime", reason="the extra 'export' is not installed")
    folder = tmp_path_factory.mktemp("export")
    backbone = folder / "tiny.pt"
    torch.save(load_clip("tiny").state_dict(), backbone)
    keys = ("OPTIM.MAX_EPOCH", "1", "DATASET.NUM_SHOTS", "2", "USE_CUDA", "False")
    keys += ("MODEL.BACKBONE.NAME", str(backbone), "MODEL.BACKBONE.CONFIG", "openai")
    words = command(folder / "data", folder / "run", "CoOp_AnchorOPT", keys=keys)
    assert train.main(words) == 0
    new = ["red fox", "seven", "eight"]  # so the weights are averages
    predictor = load_predictor(folder / "run", new)
    predictor.export(folder / "weights.safetensors")
    predictor.export(folder / "model.onnx")
    wide = Image.effect_noise((95, 50), 90)
    image = Image.merge("RGB", [wide, wide.rotate(180), wide.point(lambda x: x // 2)])
    orientation = Image.Exif()
    orientation[0x0112] = 6  # a quarter turn
    image.save(folder / "cat.jpg", exif=orientation)
    return folder, predictor(folder / "cat.jpg")


def printed_by(example, folder, monkeypatch, capsys, **names):
    monkeypatch.chdir(folder)
    capsys.readouterr()
    exec(compile(EXAMPLES[example], "docs/export.md", "exec"), names)
    return ast.literal_eval(capsys.readouterr().out.splitlines()[-1])


def same_as(found, wanted):
    assert found == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("example", ["With this package", "With OpenAI's clip", "ONNX"])
def test_examples_that_need_no_other_clip(folder, monkeypatch, capsys, example):
    same_as(printed_by(example, folder[0], monkeypatch, capsys), folder[1])


def test_the_line_for_images_of_16_bits(tmp_path):
    Image.fromarray(np.arange(65536, dtype=np.uint16).reshape(256, 256)).save(tmp_path / "a.png")
    names = {"Image": Image, "np": np, "image": Image.open(tmp_path / "a.png")}
    (line,) = re.findall(r"`(image = .*)`", PAGE)
    exec(line, names)
    assert names["image"].convert("RGB").tobytes() == read_image(tmp_path / "a.png").tobytes()


def test_the_example_of_open_clip(folder, monkeypatch, capsys):
    open_clip = pytest.importorskip("open_clip", reason="open_clip is not installed")

    def create(name, *, pretrained, force_quick_gelu):
        """Return the tiny CLIP, as no weights can be downloaded here."""
        assert pretrained == "openai" and force_quick_gelu and name.endswith("tiny.pt")
        model = open_clip.openai.load_openai_model(str(folder[0] / "tiny.pt"), device="cpu")
        return model, None, clip.load(str(folder[0] / "tiny.pt"), "cpu")[1]

    arguments = inspect.signature(open_clip.create_model_and_transforms).parameters
    assert {"pretrained", "force_quick_gelu"} <= arguments.keys()
    monkeypatch.setattr(open_clip, "create_model_and_transforms", create)
    same_as(printed_by("With open_clip", folder[0], monkeypatch, capsys), folder[1])


def as_transformers(state):
    """Return OpenAI's image tower as transformers' CLIPModel."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    width, _, patch, _ = state["visual.conv1.weight"].shape
    grid = round((len(state["visual.positional_embedding"]) - 1) ** 0.5)
    pattern = r"visual\.transformer\.resblocks\.(\d+)\."
    layers = 1 + max(int(found[1]) for key in state if (found := re.match(pattern, key)))
    config = transformers.CLIPConfig(
        projection_dim=state["visual.proj"].shape[1],
        vision_config={
            **{"hidden_size": width, "intermediate_size": 4 * width, "patch_size": patch},
            **{"num_hidden_layers": layers, "num_attention_heads": width // 64},
            **{"image_size": grid * patch, "projection_dim": state["visual.proj"].shape[1]},
        },
    )
    names = {
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    }
    for kind in ("weight", "bias"):
        names[f"visual.ln_pre.{kind}"] = f"vision_model.pre_layrnorm.{kind}"
        names[f"visual.ln_post.{kind}"] = f"vision_model.post_layernorm.{kind}"
    there = {name: state[key] for key, name in names.items()}
    there["visual_projection.weight"] = state["visual.proj"].T
    parts = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj"}
    parts |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    for layer in range(layers):
        ours = f"visual.transformer.resblocks.{layer}"
        theirs = f"vision_model.encoder.layers.{layer}"
        for kind in ("weight", "bias"):
            for key, name in parts.items():
                there[f"{theirs}.{name}.{kind}"] = state[f"{ours}.{key}.{kind}"]
            thirds = state[f"{ours}.attn.in_proj_{kind}"].chunk(3)
            for name, third in zip(("q", "k", "v"), thirds, strict=True):
                there[f"{theirs}.self_attn.{name}_proj.{kind}"] = third
    model = transformers.CLIPModel(config).eval()
    missing, unexpected = model.load_state_dict(there, strict=False)
    assert not unexpected
    assert not [name for name in missing if name.startswith("visi")]
    return model


def test_the_example_of_transformers(folder, monkeypatch, capsys):
    model = as_transformers(load_clip("tiny").state_dict())
    import transformers

    monkeypatch.setattr(transformers.CLIPModel, "from_pretrained", lambda name: model)
    same_as(printed_by("With transformers", folder[0], monkeypatch, capsys), folder[1])


def test_the_example_in_plain_pytorch(folder, monkeypatch, capsys):
    predictor = load_predictor(folder[0] / "weights.safetensors")
    names = {"predictor": predictor, "Image": Image, "ImageOps": ImageOps, "torch": torch}
    monkeypatch.chdir(folder[0])
    exec(compile(EXAMPLES["In plain PyTorch"], "docs/export.md", "exec"), names)
    images = predictor.transform(names["image"])[None].expand(3, -1, -1, -1)
    for model in (names["script"], names["program"].module()):
        for row in model(images):
            same_as(predictor.by_name(row), folder[1])

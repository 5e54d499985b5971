"""Small CLIPs of open_clip and transformers with random weights, and their folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

open_clip = pytest.importorskip("open_clip", reason="the extra 'open_clip' is not installed")
transformers = pytest.importorskip("transformers", reason="the extra 'transformers' is missing")

PROCESSOR = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
SIDE = 32
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2}
VIT = {"image_size": SIDE, "layers": 2, "width": 64, "head_width": 16, "patch_size": 8}
RESNET = {"image_size": 64, "layers": [1, 2, 1, 1], "width": 8, "patch_size": None}
OPEN_CLIP: dict[str, dict[str, Any]] = {
    "ViT, GELU": {"vision_cfg": VIT},
    "ViT, QuickGELU": {"vision_cfg": VIT, "quick_gelu": True},
    # As ViT-H: heads of width 80; as ViT-g: another hidden width.
    "heads of 80": {"vision_cfg": {**VIT, "width": 160, "head_width": 80, "mlp_ratio": 4.3637}},
    "ResNet": {"vision_cfg": RESNET, "quick_gelu": True},
    "custom text": {"vision_cfg": VIT, "custom_text": True},
}
TRANSFORMERS = {
    "transformers, QuickGELU": {"hidden_act": "quick_gelu"},
    "transformers, GELU": {"hidden_act": "gelu"},
}
ALL = [*OPEN_CLIP, *TRANSFORMERS]


def model_cfg(name: str) -> dict[str, Any]:
    return {"embed_dim": 32, "text_cfg": TEXT, **OPEN_CLIP[name]}


def config(name: str) -> Any:
    """The configuration of a model of transformers."""
    sizes = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "projection_dim": 32, **TRANSFORMERS[name]}
    image = {**sizes, "image_size": SIDE, "patch_size": 8}
    return transformers.CLIPConfig(text_config=sizes, vision_config=image, projection_dim=32)


def new(name: str) -> nn.Module:
    """A model of a library, no bias or norm of which is zero or one."""
    torch.manual_seed(1)
    if name in OPEN_CLIP:
        cfg = model_cfg(name)
        kind = open_clip.CustomTextCLIP if cfg.pop("custom_text", False) else open_clip.CLIP
        model = kind(**cfg)
    else:
        model = transformers.CLIPModel(config(name))
    with torch.no_grad():
        for x in (*model.parameters(), *model.buffers()):
            if x.is_floating_point() and x.dim() == 1:
                x.add_(0.3 * torch.rand_like(x))
    return model.eval().requires_grad_(False)


def image_features(model: Any, images: Tensor) -> Tensor:
    """The library's own features of images."""
    if hasattr(model, "encode_image"):
        return model.encode_image(images)
    return model.visual_projection(model.vision_model(pixel_values=images).pooler_output)


def text_features(model: Any, tokens: Tensor) -> Tensor:
    """The library's own features of texts."""
    if hasattr(model, "encode_text"):
        return model.encode_text(tokens)
    return model.text_projection(model.text_model(input_ids=tokens).pooler_output)


def write_folder(name: str, folder: Path, **preparation: Any) -> nn.Module:
    """Write a model as its library does; return it."""
    model = new(name)
    write_config(name, folder, **preparation)
    if name in TRANSFORMERS:
        model.save_pretrained(folder)
    else:
        torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    return model


def write_config(name: str, folder: Path, **preparation: Any) -> Path:
    """Write the configuration of a model, beside an empty file of weights; return its file."""
    folder.mkdir(parents=True, exist_ok=True)
    if name in TRANSFORMERS:
        config(name).save_pretrained(folder)
        PROCESSOR(**preparation).save_pretrained(folder)
        (folder / "model.safetensors").touch()
        return folder / "config.json"
    content = {"model_cfg": model_cfg(name), "preprocess_cfg": preparation}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    (folder / "open_clip_pytorch_model.bin").touch()
    return folder / "open_clip_config.json"

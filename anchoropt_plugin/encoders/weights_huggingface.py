"""CLIPs of transformers (Hugging Face): their tensors in OpenAI's layout, and their config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .architecture import Architecture, ImagePreparation, Tower
from .refused_towers import refuse_by_model_type, refused

FIRST = "text_model."
"""The start of the names of a text tower."""

_NAMES = {
    "text_model.embeddings.token_embedding": "token_embedding",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm": "ln_final",
    "text_model.encoder.layers": "transformer.resblocks",
    "text_projection.weight": "text_projection",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding": "visual.conv1",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm": "visual.ln_pre",
    "vision_model.post_layernorm": "visual.ln_post",
    "vision_model.encoder.layers": "visual.transformer.resblocks",
    "visual_projection.weight": "visual.proj",
    ".layer_norm1.": ".ln_1.",
    ".layer_norm2.": ".ln_2.",
    ".self_attn.": ".attn.",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
}
"""Parts of names, and OpenAI's."""
_TRANSPOSED = ("text_projection", "visual.proj")

# What a config.json omits has the default of transformers.
_TEXT = {"hidden_act": "quick_gelu", "num_attention_heads": 8, "eos_token_id": 49407}
_IMAGE = {"hidden_act": "quick_gelu", "num_attention_heads": 12}
_BOTH = {"layer_norm_eps": 1e-5}
_ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_python": "gelu"}
_EOT = (2, 49407)
"""Values of ``eos_token_id`` that read features at CLIP's EOT. The old value 2 stands for the
highest token, which is EOT."""
_SIZES = {
    "text width": ("text", "hidden_size"),
    "text layers": ("text", "num_hidden_layers"),
    "image width": ("vision", "hidden_size"),
    "image layers": ("vision", "num_hidden_layers"),
    "patch size": ("vision", "patch_size"),
    "image size": ("vision", "image_size"),
}
_FILTERS = {0: "nearest", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers of filters."""


def in_openai_layout(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a ``CLIPModel`` under OpenAI's names and in OpenAI's shapes.

    Raises:
        KeyError: a projection of an attention is missing.
    """
    renamed = {}
    for name, tensor in state.items():
        for theirs, ours in _NAMES.items():
            name = name.replace(theirs, ours)
        renamed[name] = tensor.t() if name in _TRANSPOSED else tensor
    for name in list(renamed):
        attention, is_query, part = name.partition(".q_proj.")
        if is_query:
            three = [renamed.pop(f"{attention}.{letter}_proj.{part}") for letter in "qkv"]
            renamed[f"{attention}.in_proj_{part}"] = torch.cat(three)
    return renamed


def architecture_of(
    config: Mapping[str, Any], preparation: Mapping[str, Any] | None, where: object
) -> Architecture:
    """Return the architecture that a config.json of transformers tells.

    Args:
        config: its content.
        preparation: the content of preprocessor_config.json, if there is one.
        where: the file, for messages.

    Raises:
        UserError: a model of another architecture.
    """
    refuse_by_model_type(config.get("model_type"), where)
    given = {kind: _given(config, kind) for kind in ("text", "vision")}
    text, image = {**_BOTH, **_TEXT, **given["text"]}, {**_BOTH, **_IMAGE, **given["vision"]}
    for part in (text, image):
        if part["hidden_act"] not in _ACTIVATIONS:
            raise refused(f"a CLIP with the activation {part['hidden_act']!r}", where)
        if part["layer_norm_eps"] != _BOTH["layer_norm_eps"]:
            raise refused(f"a CLIP with layer_norm_eps {part['layer_norm_eps']}", where)
    if text["eos_token_id"] not in _EOT:
        raise refused(f"a CLIP whose texts end with the token {text['eos_token_id']}", where)
    sizes = {name: given[kind][key] for name, (kind, key) in _SIZES.items() if key in given[kind]}
    return Architecture(
        Tower(_ACTIVATIONS[text["hidden_act"]], text["num_attention_heads"]),
        Tower(_ACTIVATIONS[image["hidden_act"]], image["num_attention_heads"]),
        sizes,
        None if preparation is None else _images(preparation),
    )


def _given(config: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    older: Mapping[str, Any] | None = config.get(f"{kind}_config_dict")  # it wins in transformers
    return older if older is not None else config.get(f"{kind}_config") or {}


def _images(preparation: Mapping[str, Any]) -> ImagePreparation:
    size = preparation.get("size")
    normalises = preparation.get("do_normalize", True)
    return ImagePreparation.of(
        preparation.get("image_mean") if normalises else (0, 0, 0),
        preparation.get("image_std") if normalises else (1, 1, 1),
        _FILTERS.get(preparation.get("resample", 3), "another filter"),
        isinstance(size, Mapping) and "shortest_edge" not in size,
    )

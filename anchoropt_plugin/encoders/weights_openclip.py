"""CLIPs of open_clip: their tensors in OpenAI's layout, and their configurations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .architecture import OPENAI_HEAD, Architecture, ImagePreparation, Tower
from .refused_towers import refused

# Values of a configuration that do what OpenAI's architecture does, or nothing in evaluation.
# Other keys must be absent, None, False, 0 or empty.
_ANY = None
_PLAIN: dict[str, tuple[Any, ...] | None] = {
    **dict.fromkeys(("layers", "width", "heads", "head_width", "mlp_ratio", "patch_size"), _ANY),
    **dict.fromkeys(("image_size", "patch_dropout", "output_tokens", "pad_id", "eos_id"), _ANY),
    **dict.fromkeys(("attn_pooler_queries", "attn_pooler_heads"), _ANY),
    "context_length": (77,),
    "vocab_size": (49408,),
    "pool_type": ("tok", "argmax"),
    "pos_embed_type": ("learnable", "sin_cos_2d"),
    "proj_type": ("linear",),
    "block_type": (None, "default"),
}
_OF_OTHER_LIBRARIES = "timm_", "hf_"
"""Starts of keys that count only with a tower of timm or Hugging Face."""
_SIZES = {
    "text width": ("text_cfg", "width"),
    "text layers": ("text_cfg", "layers"),
    "image width": ("vision_cfg", "width"),
    "image layers": ("vision_cfg", "layers"),
    "patch size": ("vision_cfg", "patch_size"),
    "image size": ("vision_cfg", "image_size"),
}


def in_openai_layout(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of an open_clip model under OpenAI's names and in OpenAI's shapes."""
    renamed = {name.removeprefix("text."): tensor for name, tensor in state.items()}
    if "logit_scale" in renamed:
        renamed["logit_scale"] = renamed["logit_scale"].reshape(())
    return renamed


def architecture_of(config: Mapping[str, Any], where: object) -> Architecture:
    """Return the architecture that a configuration of open_clip tells.

    Args:
        config: the content of an open_clip_config.json, or of a file of open_clip's
            ``model_configs``.
        where: the file, for messages.

    Raises:
        UserError: a model of another architecture.
    """
    model = config.get("model_cfg", config)
    text, image = model["text_cfg"], model["vision_cfg"]
    _check(model, where)
    stages = image.get("layers")
    width = image.get("width", 768) * (32 if isinstance(stages, list) else 1)
    activation = "quick_gelu" if model.get("quick_gelu") else "gelu"
    sizes = {name: model[part].get(key) for name, (part, key) in _SIZES.items()}
    sizes["embed_dim"] = model.get("embed_dim")
    prepared = config.get("preprocess_cfg") or {}
    return Architecture(
        Tower(activation, text.get("heads", 8)),
        Tower(activation, width // image.get("head_width", OPENAI_HEAD)),
        {name: size for name, size in sizes.items() if isinstance(size, int)},
        ImagePreparation.of(
            prepared.get("mean"),
            prepared.get("std"),
            prepared.get("interpolation") or "bicubic",
            prepared.get("resize_mode") == "squash",
        ),
    )


def _check(model: Mapping[str, Any], where: object) -> None:
    """Raise ``UserError`` for a model of another architecture."""
    if "multimodal_cfg" in model:
        raise refused("CoCa", where)
    image, text = model["vision_cfg"], model["text_cfg"]
    name = str(image.get("timm_model_name") or "")
    if "siglip" in name or model.get("init_logit_bias") is not None:
        raise refused("SigLIP", where)
    if name:
        what = "EVA-CLIP" if name.startswith("eva") else "a CLIP"
        raise refused(f"{what} with the image tower {name} of timm", where)
    name = str(text.get("hf_model_name") or "")
    if name:
        raise refused(f"a CLIP with the text tower {name} of Hugging Face", where)
    for part in ("vision_cfg", "text_cfg"):
        for key, value in model[part].items():
            if key.startswith(_OF_OTHER_LIBRARIES) and key != "hf_tokenizer_name":
                continue
            known = _PLAIN.get(key, (None, False, 0, "", {}))
            if known is not _ANY and value not in known:
                raise refused(f"a CLIP with {part}.{key} {value!r}", where)

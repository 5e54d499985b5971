"""CLIP-like models of other architectures, refused by name."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import UserError

_BY_TENSOR = {
    "text_decoder.": "CoCa",
    "logit_bias": "SigLIP",
    "vision_model.head.": "SigLIP",
    "visual.trunk.": "a CLIP with an image tower of timm (EVA, SigLIP, ConvNeXt, …)",
    "visual.blocks.": "EVA-CLIP",
    "text.transformer.encoder.block.": "a CLIP with a multilingual text tower (mT5)",
    "text.transformer.": "a CLIP with a text tower of Hugging Face (XLM-R, BERT, …)",
    "text_model.roberta.": "AltCLIP, a CLIP with a multilingual text tower (XLM-R)",
    "text_model.encoder.layer.": "a CLIP with the text tower BERT (Chinese-CLIP)",
}
"""By the start of a tensor's name. The first that fits names the model."""
_PLAIN_TEXT = "text.transformer.resblocks."

_BY_MODEL_TYPE = {
    "siglip": "SigLIP",
    "siglip2": "SigLIP",
    "altclip": "AltCLIP, a CLIP with a multilingual text tower (XLM-R)",
    "chinese_clip": "Chinese-CLIP, a CLIP with the text tower BERT",
    "metaclip_2": "MetaCLIP 2, a CLIP with a multilingual text tower",
}
"""By the ``model_type`` in a config.json of transformers."""


def refused(what: str, where: object) -> UserError:
    """Return the error for a model of another architecture."""
    return UserError(
        f"{where} is {what}: only CLIPs of OpenAI's architecture work, with its image transformer "
        "or ResNet, its causal text transformer and its 49408 tokens"
    )


def refuse_by_tensors(names: Iterable[str], where: object) -> None:
    """Check that no name of a tensor belongs to another architecture.

    Raises:
        UserError: one does; the message names the model.
    """
    names = [name for name in names if not name.startswith(_PLAIN_TEXT)]
    for start, what in _BY_TENSOR.items():
        if any(name.startswith(start) for name in names):
            raise refused(what, where)


def refuse_by_model_type(model_type: object, where: object) -> None:
    """Check that the ``model_type`` of a config.json is CLIP's.

    Raises:
        UserError: it is another one.
    """
    if model_type != "clip":
        what = _BY_MODEL_TYPE.get(str(model_type), f"a model of the type {model_type!r}")
        raise refused(what, where)

"""What the tensors of a CLIP do not tell, and the CLIP that is built from both.

The tensors tell widths, depths, patches and the image side. They tell neither the activation, GELU
or QuickGELU, nor the number of attention heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import UserError
from .openai_clip import CLIP, ModifiedResNet, QuickGELU, VisionTransformer, build_model

OPENAI_HEAD = 64
"""Width of an attention head in all of OpenAI's CLIPs."""

ACTIVATIONS: dict[str, type[nn.Module]] = {"quick_gelu": QuickGELU, "gelu": nn.GELU}


class Tower(NamedTuple):
    """What the tensors of a tower do not tell.

    Attributes:
        activation: a name of ``ACTIVATIONS``; an image tower that is a ResNet has ReLU anyway.
        heads: attention heads; None is OpenAI's number, one for each 64 of the width.
    """

    activation: str = "quick_gelu"
    heads: int | None = None


class ImagePreparation(NamedTuple):
    """How images are prepared for a CLIP, besides their size.

    Attributes:
        mean: of each channel, subtracted from pixels in 0 … 1; the default is OpenAI's.
        std: of each channel; the difference is divided by it.
        interpolation: filter of the resize, a name of torchvision.
        squashed: whether an image is resized to a square, and not cropped at its centre.
    """

    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    interpolation: str = "bicubic"
    squashed: bool = False

    @classmethod
    def of(
        cls, mean: Sequence[Any] | None, std: Sequence[Any] | None, interpolation: str, squash: bool
    ) -> ImagePreparation:
        """Return the preparation of a configuration; a mean or std of None is OpenAI's.

        Raises:
            ValueError: the mean or the std is no three numbers.
        """
        default = cls()
        found = cls(
            default.mean if mean is None else tuple(map(float, mean)),
            default.std if std is None else tuple(map(float, std)),
            interpolation,
            squash,
        )
        if len(found.mean) != 3 or len(found.std) != 3:
            raise ValueError(f"the mean {mean} or the std {std} is no three numbers")
        return found


@dataclass(frozen=True)
class Architecture:
    """What the tensors of a CLIP do not tell.

    Attributes:
        text: of the text tower.
        image: of the image tower.
        sizes: sizes that the tensors must have, by the names of ``sizes_of``.
        preparation: how images are prepared for the weights; None if nothing tells it.
    """

    text: Tower
    image: Tower
    sizes: Mapping[str, int] = field(default_factory=dict)
    preparation: ImagePreparation | None = None

    def towers(self, state: Mapping[str, Tensor]) -> tuple[Tower, Tower]:
        """Return the text and the image tower, with the number of their heads for these tensors.

        Raises:
            UserError: the heads do not fit the width of the tensors.
        """
        sizes = sizes_of(state)
        # A ResNet has heads in its last pooling alone, which is 32 times as wide as its stem.
        width = sizes["image width"] * (1 if "patch size" in sizes else 32)
        return _with_heads(self.text, sizes["text width"]), _with_heads(self.image, width)


OPENAI = Architecture(Tower(), Tower())
"""OpenAI's CLIPs."""


def sizes_of(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the sizes of a CLIP, by name, from its tensors in OpenAI's layout.

    Raises:
        KeyError, ValueError: the tensors are not those of a CLIP.
    """
    sizes = {
        "embed_dim": state["text_projection"].shape[1],
        "text width": state["ln_final.weight"].shape[0],
        "text layers": _count(state, "transformer.resblocks."),
    }
    if "visual.proj" not in state:
        grid = state["visual.attnpool.positional_embedding"].shape[0] - 1
        width = state["visual.layer1.0.conv1.weight"].shape[0]
        return {**sizes, "image width": width, "image size": 32 * _side(grid)}
    width, _, patch, other = state["visual.conv1.weight"].shape
    if patch != other:
        raise ValueError(f"its patches are {patch} x {other}, not square")
    return {
        **sizes,
        "image width": width,
        "image layers": _count(state, "visual.transformer.resblocks."),
        "patch size": patch,
        "image size": patch * _side(state["visual.positional_embedding"].shape[0] - 1),
    }


def build(state: dict[str, Tensor], architecture: Architecture) -> CLIP:
    """Build a CLIP in fp32 from tensors in OpenAI's layout.

    Raises:
        UserError: the architecture is another than that of the tensors.
        KeyError, RuntimeError, ValueError: the tensors are not those of a CLIP.
    """
    if architecture == OPENAI:
        # OpenAI's own function; it draws random numbers, as it did for earlier runs of a seed.
        # It rounds to half precision, so load the fp32 weights once more.
        model = build_model(dict(state)).float()
        model.load_state_dict(state)
        return model
    sizes = sizes_of(state)
    for name, told in architecture.sizes.items():
        if sizes.get(name) != told:
            raise UserError(
                f"the configuration tells {name} {told}, but the weights have {sizes.get(name)}: "
                "give the configuration of these weights"
            )
    text, image = architecture.towers(state)
    vocabulary, length = (
        len(state[name]) for name in ("token_embedding.weight", "positional_embedding")
    )
    with torch.device("meta"):  # the weights come from the file
        model = CLIP(
            *(sizes["embed_dim"], 32, 1, OPENAI_HEAD, 32),  # an image tower to be replaced
            *(length, vocabulary, sizes["text width"], text.heads, sizes["text layers"]),
        )
        model.visual = _image_tower(state, image.heads, sizes)
        for prefix, tower in ("", text), ("visual.", image):
            for number in range(_count(state, f"{prefix}transformer.resblocks.")):
                name = f"{prefix}transformer.resblocks.{number}.mlp"
                hidden, width = state[f"{name}.c_fc.weight"].shape
                mlp = model.get_submodule(name)
                mlp.gelu = ACTIVATIONS[tower.activation]()
                mlp.c_fc, mlp.c_proj = nn.Linear(width, hidden), nn.Linear(hidden, width)
    floats = {name: x.float() if x.is_floating_point() else x for name, x in state.items()}
    model.load_state_dict(floats, assign=True)
    mask = model.build_attention_mask()
    for block in model.transformer.resblocks:
        block.attn_mask = mask
    return model


def _image_tower(
    state: Mapping[str, Tensor], heads: int | None, sizes: Mapping[str, int]
) -> nn.Module:
    width, side, dim = sizes["image width"], sizes["image size"], sizes["embed_dim"]
    if "patch size" in sizes:
        layers = sizes["image layers"]
        return VisionTransformer(side, sizes["patch size"], width, layers, heads, dim)
    stages = [_count(state, f"visual.layer{stage}.") for stage in (1, 2, 3, 4)]
    return ModifiedResNet(stages, dim, heads, side, width)


def variant_of(tower: nn.Module) -> str:
    """Return in words what a tower of transformer blocks has other than OpenAI's, or "".

    >>> from anchoropt_plugin import load_clip
    >>> variant_of(load_clip("tiny").transformer)
    ''
    """
    found = {type(part).__name__ for part in tower.modules() if isinstance(part, nn.GELU)}
    for part in tower.modules():
        if isinstance(part, nn.MultiheadAttention) and part.head_dim != OPENAI_HEAD:
            found.add(f"heads of {part.head_dim}")
    return ", ".join(sorted(found))


def _with_heads(tower: Tower, width: int) -> Tower:
    heads = width // OPENAI_HEAD if tower.heads is None else tower.heads
    if heads < 1 or width % heads:
        raise UserError(
            f"{heads} attention heads do not divide the width {width} of the weights: give the "
            "configuration of these weights"
        )
    return tower._replace(heads=heads)


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """Return how many numbers follow a prefix in the names."""
    return len({name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)})


def _side(n_tokens: int) -> int:
    side = round(n_tokens**0.5)
    if side**2 != n_tokens:
        raise ValueError(f"its image tower has {n_tokens} patches, which are no square")
    return side

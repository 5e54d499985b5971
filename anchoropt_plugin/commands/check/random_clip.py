"""CLIPs with random weights, in OpenAI's sizes and file format, that hosts load as their own."""

from __future__ import annotations

import contextlib
import math
import sys
import tempfile
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn
from unittest import mock

import torch
from torch import Tensor, nn

from ...errors import UserError


class Size(NamedTuple):
    """The widths of a CLIP, and the blocks of its image tower: one number for each ResNet stage."""

    features: int
    text: int
    vision: int
    layers: tuple[int, ...]
    patch: int = 32


SIZES = {
    "ViT-B-32": Size(512, 512, 768, (12,)),
    "ViT-B-16": Size(512, 512, 768, (12,), patch=16),
    "ViT-L-14": Size(768, 768, 1024, (24,), patch=14),
    "RN50": Size(1024, 512, 64, (3, 4, 6, 3)),
    "RN101": Size(512, 512, 64, (3, 4, 23, 3)),
}
"""By the file name of OpenAI's model. Hosts hard-code widths, patches and blocks."""
LAYERS, RESOLUTION, VOCABULARY, CONTEXT_LENGTH = 12, 224, 49408, 77
"""Blocks of the text tower, image side, tokens that exist, and tokens of a prompt."""


def random_weights(backbone: str = "ViT-B-32") -> dict[str, Tensor]:
    """Return the state dict of a random CLIP in float32; the weights are always the same.

    >>> random_weights()["text_projection"].shape
    torch.Size([512, 512])
    """
    size = SIZES[backbone]
    draw = _Draw()
    image_tower = draw.transformer if len(size.layers) == 1 else draw.resnet
    return {
        "positional_embedding": draw.normal(CONTEXT_LENGTH, size.text, std=0.01),
        "text_projection": draw.normal(size.text, size.features, std=size.text**-0.5),
        "logit_scale": torch.tensor(math.log(100.0)),
        "token_embedding.weight": draw.normal(VOCABULARY, size.text, std=0.02),
        **draw.norm("ln_final", size.text),
        **draw.blocks("transformer", size.text, LAYERS),
        **{f"visual.{name}": value for name, value in image_tower(size).items()},
    }


class _Draw:
    """Random weights of the parts of a CLIP, by name."""

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(0)

    def normal(self, *shape: int, std: float) -> Tensor:
        return torch.randn(shape, generator=self._generator) * std

    def norm(self, name: str, width: int) -> dict[str, Tensor]:
        return {f"{name}.weight": torch.ones(width), f"{name}.bias": torch.zeros(width)}

    def batch_norm(self, name: str, width: int) -> dict[str, Tensor]:
        statistics = {
            "running_mean": torch.zeros(width),
            "running_var": torch.ones(width),
            "num_batches_tracked": torch.tensor(0),
        }
        return self.norm(name, width) | {f"{name}.{key}": x for key, x in statistics.items()}

    def linear(self, name: str, into: int, out_of: int) -> dict[str, Tensor]:
        weight = self.normal(into, out_of, std=out_of**-0.5)
        return {f"{name}weight": weight, f"{name}bias": torch.zeros(into)}

    def blocks(self, name: str, width: int, n_layers: int) -> dict[str, Tensor]:
        block = {
            **self.norm("ln_1", width),
            **self.norm("ln_2", width),
            **self.linear("attn.in_proj_", 3 * width, width),
            **self.linear("attn.out_proj.", width, width),
            **self.linear("mlp.c_fc.", 4 * width, width),
            **self.linear("mlp.c_proj.", width, 4 * width),
        }
        # All layers share one block's weights: drawing and writing twelve blocks takes longer.
        return {
            f"{name}.resblocks.{layer}.{key}": value
            for layer in range(n_layers)
            for key, value in block.items()
        }

    def transformer(self, size: Size) -> dict[str, Tensor]:
        width, patch = size.vision, size.patch
        tokens = (RESOLUTION // patch) ** 2 + 1
        return {
            "class_embedding": self.normal(width, std=width**-0.5),
            "positional_embedding": self.normal(tokens, width, std=width**-0.5),
            "proj": self.normal(width, size.features, std=width**-0.5),
            "conv1.weight": self.normal(width, 3, patch, patch, std=(3 * patch**2) ** -0.5),
            **self.norm("ln_pre", width),
            **self.norm("ln_post", width),
            **self.blocks("transformer", width, *size.layers),
        }

    def convolution(
        self, name: str, norm: str, into: int, out_of: int, side: int
    ) -> dict[str, Tensor]:
        std = (out_of * side**2) ** -0.5
        weight = {f"{name}.weight": self.normal(into, out_of, side, side, std=std)}
        return weight | self.batch_norm(norm, into)

    def resnet(self, size: Size) -> dict[str, Tensor]:
        width = size.vision
        tower = {
            **self.convolution("conv1", "bn1", width // 2, 3, 3),
            **self.convolution("conv2", "bn2", width // 2, width // 2, 3),
            **self.convolution("conv3", "bn3", width, width // 2, 3),
        }
        into = width
        for stage, n_blocks in enumerate(size.layers):
            inner = width * 2**stage
            for number in range(n_blocks):
                block = f"layer{stage + 1}.{number}"
                tower |= self.convolution(f"{block}.conv1", f"{block}.bn1", inner, into, 1)
                tower |= self.convolution(f"{block}.conv2", f"{block}.bn2", inner, inner, 3)
                tower |= self.convolution(f"{block}.conv3", f"{block}.bn3", 4 * inner, inner, 1)
                if number == 0:
                    down = f"{block}.downsample"
                    tower |= self.convolution(f"{down}.0", f"{down}.1", 4 * inner, into, 1)
                into = 4 * inner
        tokens = (RESOLUTION // 32) ** 2 + 1
        tower["attnpool.positional_embedding"] = self.normal(tokens, into, std=into**-0.5)
        for name in ("k_proj", "q_proj", "v_proj"):
            tower |= self.linear(f"attnpool.{name}.", into, into)
        return tower | self.linear("attnpool.c_proj.", size.features, into)


def write_archive(state: dict[str, Tensor], path: Path) -> None:
    """Write a state dict in the format of OpenAI's files: TorchScript, half precision."""
    root = nn.Module()
    halves = {
        id(x): nn.Parameter(x.half() if x.is_floating_point() else x, False) for x in state.values()
    }
    for name, tensor in state.items():
        *parents, last = name.split(".")
        module = root
        for parent in parents:
            if parent not in module._modules:
                module.add_module(parent, nn.Module())
            module = module.get_submodule(parent)
        module.register_parameter(last, halves[id(tensor)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, but hosts read this format
        torch.jit.save(torch.jit.script(root), path)


@contextlib.contextmanager
def random_clip() -> Iterator[Path]:
    """Give every imported ``clip`` module a random CLIP in place of a file that it downloads.

    Yields:
        The folder of the files that were given.

    Nothing is downloaded, and the user's cache stays untouched. A ``clip`` module imported later
    gets a ``UserError`` instead of a download.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as patches:

        def download(url: str, *args: Any, **kwargs: Any) -> str:
            path = Path(folder, Path(url).name)
            if path.stem not in SIZES:
                raise UserError(
                    f"the trainer loads {url}, but `check` has random CLIPs for "
                    f"{', '.join(SIZES)} alone: give MODEL.BACKBONE.NAME"
                )
            if not path.exists():
                write_archive(random_weights(path.stem), path)
            return str(path)

        for module in list(sys.modules.values()):
            if _is_of_clip(vars(module).get("_download")):
                patches.enter_context(mock.patch.object(module, "_download", download))
        patches.enter_context(mock.patch.object(urllib.request, "urlopen", _refuse))
        yield Path(folder)


def _is_of_clip(function: Any) -> bool:
    """Return whether ``function`` is the ``_download`` of OpenAI's module or a fork of it."""
    return "_MODELS" in getattr(function, "__globals__", ())


def _refuse(url: Any, *args: Any, **kwargs: Any) -> NoReturn:
    url = getattr(url, "full_url", url)
    raise UserError(f"the trainer downloads {url}, but `check` allows no downloads")

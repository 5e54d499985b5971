"""A small CLIP with random weights, in OpenAI's file format, that hosts load as their own CLIP."""

from __future__ import annotations

import contextlib
import math
import sys
import tempfile
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

import torch
from torch import Tensor, nn

from ...errors import UserError

TEXT, VISION, FEATURES, PATCH, RESOLUTION = 512, 768, 512, 32, 224
"""Text width, vision width, feature width, patch side and image side of ViT-B/32: hosts hard-code
widths."""
LAYERS, VISION_LAYERS = 12, 3
"""All layers of the text tower, because hosts may hard-code a block with prompts; few of the image
tower's."""
VOCABULARY, CONTEXT_LENGTH = 49408, 77


def random_weights() -> dict[str, Tensor]:
    """Return the state dict of the random CLIP in float32; the weights are always the same.

    >>> random_weights()["text_projection"].shape
    torch.Size([512, 512])
    """
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, std: float) -> Tensor:
        return torch.randn(shape, generator=generator) * std

    def norm(name: str, width: int) -> dict[str, Tensor]:
        return {f"{name}.weight": torch.ones(width), f"{name}.bias": torch.zeros(width)}

    def linear(name: str, into: int, out_of: int) -> dict[str, Tensor]:
        weight = normal(into, out_of, std=out_of**-0.5)
        return {f"{name}weight": weight, f"{name}bias": torch.zeros(into)}

    def blocks(name: str, width: int, n_layers: int) -> dict[str, Tensor]:
        block = {
            **norm("ln_1", width),
            **norm("ln_2", width),
            **linear("attn.in_proj_", 3 * width, width),
            **linear("attn.out_proj.", width, width),
            **linear("mlp.c_fc.", 4 * width, width),
            **linear("mlp.c_proj.", width, 4 * width),
        }
        # All layers share one block's weights: drawing and writing twelve blocks takes longer.
        return {
            f"{name}.resblocks.{layer}.{key}": value
            for layer in range(n_layers)
            for key, value in block.items()
        }

    tokens = (RESOLUTION // PATCH) ** 2 + 1
    return {
        "positional_embedding": normal(CONTEXT_LENGTH, TEXT, std=0.01),
        "text_projection": normal(TEXT, FEATURES, std=TEXT**-0.5),
        "logit_scale": torch.tensor(math.log(100.0)),
        "token_embedding.weight": normal(VOCABULARY, TEXT, std=0.02),
        **norm("ln_final", TEXT),
        **blocks("transformer", TEXT, LAYERS),
        "visual.class_embedding": normal(VISION, std=VISION**-0.5),
        "visual.positional_embedding": normal(tokens, VISION, std=VISION**-0.5),
        "visual.proj": normal(VISION, FEATURES, std=VISION**-0.5),
        "visual.conv1.weight": normal(VISION, 3, PATCH, PATCH, std=(3 * PATCH**2) ** -0.5),
        **norm("visual.ln_pre", VISION),
        **norm("visual.ln_post", VISION),
        **blocks("visual.transformer", VISION, VISION_LAYERS),
    }


def write_archive(state: dict[str, Tensor], path: Path) -> None:
    """Write a state dict in the format of OpenAI's files: TorchScript, half precision."""
    root = nn.Module()
    halves = {id(tensor): nn.Parameter(tensor.half(), False) for tensor in state.values()}
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
def random_clip() -> Iterator[None]:
    """Give the random CLIP to every imported ``clip`` module, whatever it wants to download.

    Nothing is downloaded, and the user's cache stays untouched. A ``clip`` module imported later
    gets a ``UserError`` instead of a download.
    """
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as patches:
        path = Path(folder, "random.pt")
        write_archive(random_weights(), path)

        def download(*args: Any, **kwargs: Any) -> str:
            return str(path)

        for module in list(sys.modules.values()):
            if _is_of_clip(vars(module).get("_download")):
                patches.enter_context(mock.patch.object(module, "_download", download))
        patches.enter_context(mock.patch.object(urllib.request, "urlopen", _refuse))
        yield


def _is_of_clip(function: Any) -> bool:
    """Return whether ``function`` is the ``_download`` of OpenAI's module or a fork of it."""
    return "_MODELS" in getattr(function, "__globals__", ())


def _refuse(url: Any, *args: Any, **kwargs: Any) -> NoReturn:
    url = getattr(url, "full_url", url)
    raise UserError(f"the trainer downloads {url}, but `check` allows no downloads")

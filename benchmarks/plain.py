"""The plain way: the text branch as in public code, and its rivals; class names for all."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from anchoropt_plugin.encoders.clip_models import CLIP, SimpleTokenizer
from benchmarks.cost import Cost
from benchmarks.harness import CUT, Outcome, Side
from trainers.prompted_clip import TextEncoder, embed_prompts, run_blocks

NAME_LENGTHS = [1] * 6 + [2] * 6 + [3] * 5 + [4] * 4 + [5, 6, 7, 8]
"""Tokens of 25 class names: from 1 to 8, 3 on average."""


class PlainTextEncoder(TextEncoder):
    """The text branch as in public code: prompts (C, 77, d), tokens (C, 77) → (C, e)."""

    def forward(self, prompts: Tensor, tokens: Tensor) -> Tensor:
        x = prompts + self.positional_embedding.type(self.dtype)
        x = self.transformer(x.permute(1, 0, 2)).permute(1, 0, 2)
        x = self.ln_final(x).type(self.dtype)
        return x[torch.arange(len(x)), tokens.argmax(-1)] @ self.text_projection


class CutTextEncoder(TextEncoder):
    """The text encoder of ``trainers/``, cut after the longest prompt: the honest rival."""

    def forward(self, prompts: Tensor, tokenized_prompts: Tensor, deep: Any = ()) -> Tensor:
        eot = tokenized_prompts.argmax(-1)
        length = int(eot.max()) + 1
        positions = self.positional_embedding[:length].type(self.dtype)
        x = prompts[..., :length, :].flatten(0, -3) + positions
        x = run_blocks(self.transformer, x.permute(1, 0, 2), deep, first=1 + self.deep_start)
        x = self.ln_final(x.permute(1, 0, 2)).type(self.dtype).unflatten(0, prompts.shape[:-2])
        return x[..., torch.arange(len(eot)), eot, :] @ self.text_projection


def cut_rivals(
    encoder: Callable[[], TextEncoder],
    step: Callable[[TextEncoder], Outcome],
    cost: Cost,
    device: torch.device,
) -> list[Side]:
    """Return the way that is cut at EOT and, on a GPU, the same way under ``torch.compile``.

    Args:
        encoder: makes a text encoder that is cut at EOT.
        step: does the step with a text encoder.
        cost: the cost of the step.
        device: the device of the benchmark.
    """
    rivals = [Side(CUT, partial(step, encoder()), cost)]
    if device.type == "cuda":
        compiled = encoder()
        compiled.compile()
        rivals.append(Side(f"{CUT}, compiled", partial(step, compiled), cost))
        rivals[-1].step()  # compiles
    return rivals


class PlainPrompts:
    """Prompts "X … X <class name>." in which a context, shared by all classes, replaces the X.

    Args:
        clip: the plain CLIP; its token embedding is on the CPU.
        names: the texts after the context, without the full stop.
        n_context: number of tokens of the context.
        device: the device of the prompts.

    Attributes:
        tokens: (C, 77), on the CPU, as with public hosts.
        eot: the position of EOT in each prompt.
    """

    def __init__(
        self, clip: CLIP, names: Sequence[str], n_context: int, device: torch.device
    ) -> None:
        self.tokens, embedded = embed_prompts(clip, names, " ".join(["X"] * n_context))
        self.eot: list[int] = self.tokens.argmax(-1).tolist()
        self._embedded = embedded.to(device)

    def __call__(self, context: Tensor) -> Tensor:
        """Return the prompts (C, 77, d) with ``context`` (n, d)."""
        embedded = self._embedded
        contexts = context.to(embedded.dtype).expand(len(embedded), -1, -1)
        return torch.cat([embedded[:, :1], contexts, embedded[:, 1 + len(context) :]], 1)


def unit(features: Tensor) -> Tensor:
    """Return ``features``, L2-normalised along the last dimension."""
    return features / features.norm(dim=-1, keepdim=True)


def scaled_cosines(clip: CLIP, images: Tensor, texts: Tensor) -> Tensor:
    """Return logits (…, C) of image features (…, e) and text features (C, e)."""
    return clip.logit_scale.exp() * unit(images) @ unit(texts).t()


@cache
def _words() -> list[str]:
    """Return the words that are one token each."""
    return [w[:-4] for w in SimpleTokenizer().encoder if re.fullmatch("[a-z]{3,}</w>", w)]


def class_names(n: int) -> list[str]:
    """Return ``n`` class names of real words, of ``NAME_LENGTHS`` tokens, the same at each call."""
    draw = random.Random(0)
    lengths = (NAME_LENGTHS * (n // len(NAME_LENGTHS) + 1))[:n]
    draw.shuffle(lengths)
    return [" ".join(draw.choices(_words(), k=length)) for length in lengths]

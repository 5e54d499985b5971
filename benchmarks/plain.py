"""The plain side: the text branch as public code has it; and the class names of both sides."""

from __future__ import annotations

import random
import re
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from anchoropt_plugin.encoders.clip_models import CLIP, SimpleTokenizer
from trainers.prompted_clip import TextEncoder, run_blocks

NAME_LENGTHS = [1] * 6 + [2] * 6 + [3] * 5 + [4] * 4 + [5, 6, 7, 8]
"""Tokens of 25 class names: from 1 to 8, 3 on average."""


class PlainTextEncoder(nn.Module):
    """The text branch as public code has it: prompts (C, 77, d), tokens (C, 77) → (C, e)."""

    def __init__(self, clip: CLIP) -> None:
        super().__init__()
        self.transformer = clip.transformer
        self.positional_embedding = clip.positional_embedding
        self.ln_final = clip.ln_final
        self.text_projection = clip.text_projection
        self.dtype = clip.dtype

    def forward(self, prompts: Tensor, tokens: Tensor) -> Tensor:
        x = prompts + self.positional_embedding.type(self.dtype)
        x = self.transformer(x.permute(1, 0, 2)).permute(1, 0, 2)
        x = self.ln_final(x).type(self.dtype)
        return x[torch.arange(len(x)), tokens.argmax(-1)] @ self.text_projection


class CutTextEncoder(TextEncoder):
    """The text encoder of ``trainers/``, cut behind the longest prompt: the honest rival."""

    def forward(self, prompts: Tensor, tokenized_prompts: Tensor, deep: Any = ()) -> Tensor:
        eot = tokenized_prompts.argmax(-1)
        length = int(eot.max()) + 1
        positions = self.positional_embedding[:length].type(self.dtype)
        x = prompts[..., :length, :].flatten(0, -3) + positions
        x = run_blocks(self.transformer, x.permute(1, 0, 2), deep, first=1 + self.deep_start)
        x = self.ln_final(x.permute(1, 0, 2)).type(self.dtype).unflatten(0, prompts.shape[:-2])
        return x[..., torch.arange(len(eot)), eot, :] @ self.text_projection


@cache
def _words() -> list[str]:
    """Words that are one token each."""
    return [w[:-4] for w in SimpleTokenizer().encoder if re.fullmatch("[a-z]{3,}</w>", w)]


def class_names(n: int) -> list[str]:
    """``n`` class names of real words, of ``NAME_LENGTHS`` tokens, always the same."""
    draw = random.Random(0)
    lengths = (NAME_LENGTHS * (n // len(NAME_LENGTHS) + 1))[:n]
    draw.shuffle(lengths)
    return [" ".join(draw.choices(_words(), k=length)) for length in lengths]

"""Small CLIPs with random weights."""

from __future__ import annotations

import signal

import pytest
import torch
from clip.model import CLIP

# Background jobs of a shell ignore SIGINT, but some tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)


def random_clip(seed: int = 0) -> CLIP:
    """A CLIP of OpenAI's architecture with random weights: two layers, width 64, four heads."""
    torch.manual_seed(seed)
    clip = CLIP(32, 32, 2, 64, 8, 77, 49408, 64, 4, 2)
    return clip.float().eval().requires_grad_(False)


@pytest.fixture(scope="session")
def clip() -> CLIP:
    """A random CLIP shared by all tests of a process: do not change it."""
    return random_clip()

"""A small world of drawn shapes and written digits, with captions in plain English.

It is what the embedded tiny CLIP was pre-trained on and what the embedded shapes data set is
drawn from. Torch tensors in, torch tensors out; every random choice is made by a generator that
the caller passes.
"""

from __future__ import annotations

from .captions import caption, describe_digit, describe_shape, vocabulary_text
from .scenes import Scene, Scenes, benchmark_scenes, sample_digits, sample_shapes
from .vocabulary import BENCHMARK, DIGITS, Triple

__all__ = [
    "BENCHMARK",
    "DIGITS",
    "Scene",
    "Scenes",
    "Triple",
    "benchmark_scenes",
    "caption",
    "describe_digit",
    "describe_shape",
    "sample_digits",
    "sample_shapes",
    "vocabulary_text",
]

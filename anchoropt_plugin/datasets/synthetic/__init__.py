"""Synthetic images of shapes and handwritten digits, with captions in plain English.

The embedded tiny CLIP was pre-trained on these images, and the embedded shapes data set is drawn
by the same functions. All functions take and return torch tensors; the caller passes the generator
of all random numbers.
"""

from __future__ import annotations

from .captions import caption, describe_digit, describe_shape, vocabulary_text
from .class_splits import CLASS_SPLITS
from .scenes import Scene, Scenes, benchmark_scenes, sample_digits, sample_shapes
from .vocabulary import BENCHMARK, DIGITS, Triple

__all__ = [
    "BENCHMARK",
    "CLASS_SPLITS",
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

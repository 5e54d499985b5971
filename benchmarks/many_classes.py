"""The text branch for all classes of ImageNet-21k, in chunks: does it fit, and what does it take?

A chunk's activations are computed again in the backward pass, so that one chunk's are held at a
time (``TRAINER.ANCHOROPT.CLASS_CHUNK``). The plain way cannot be run: it would take hours, and
hundreds of gigabytes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import command
from benchmarks.harness import VIT_B16, Bench, Case, Sizes
from benchmarks.text_branch import text_branch

IMAGENET_21K = 21_841
CHUNK = 1_000


def cases(bench: Bench) -> Iterator[Case]:
    """One for each number of classes."""
    clip = bench.clip()
    for n_classes in bench.classes or (IMAGENET_21K,):
        case = text_branch(bench, clip, n_classes, CHUNK)
        yield case._replace(name=f"{case.name}, {CHUNK} at once", plain=None)


def main(arguments: Sequence[str] | None = None, sizes: Sizes = VIT_B16) -> int:
    """The command line; returns the exit status."""
    return command.main("Very many classes", __doc__, cases, arguments, sizes)


if __name__ == "__main__":
    sys.exit(main())

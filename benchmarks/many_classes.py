"""The text branch with all classes of ImageNet-21k, in chunks: its time and memory.

The backward pass computes the activations of a chunk again, so only one chunk's activations are in
memory at a time (``TRAINER.ANCHOROPT.CLASS_CHUNK``). There is no plain side: it would take hours
and hundreds of gigabytes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import command
from benchmarks.harness import Bench, Case
from benchmarks.text_branch import text_branch

IMAGENET_21K = 21_841
CHUNK = 1_000


def cases(bench: Bench) -> Iterator[Case]:
    """Yield a case for each number of classes."""
    for n_classes in bench.classes or (IMAGENET_21K,):
        case = text_branch(bench, n_classes, CHUNK)
        yield case._replace(name=f"{case.name}, {CHUNK} at once", plain=None)


main = partial(command.main, "Very many classes", __doc__, cases)

if __name__ == "__main__":
    sys.exit(main())

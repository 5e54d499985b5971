"""The frozen image tower, 32 pictures, as at each training step and each batch of a test.

The plain side calls CLIP's own; ours is the same with the stand-in of ``cache_image_features``, to
which every picture is new.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from anchoropt_plugin.encoders.feature_cache import CachedFeatures
from benchmarks import command, harness
from benchmarks.harness import VIT_B16, Bench, Case, Outcome, Side, Sizes

BATCH = 32


def cases(bench: Bench) -> Iterator[Case]:
    """The one batch."""
    sizes = bench.sizes
    visual = bench.clip().visual.to(bench.device)
    pictures = bench.random(BATCH, 3, sizes.resolution, sizes.resolution)
    cost = harness.image_tower(sizes, BATCH)

    @torch.no_grad()
    def encoded(encoder: Callable[[Tensor], Tensor]) -> Outcome:
        return Outcome(encoder(pictures))

    yield Case(
        f"batch {BATCH}",
        Side("plain", lambda: encoded(visual), cost),
        [Side("ours", lambda: encoded(CachedFeatures(visual)), cost)],
    )


def main(arguments: Sequence[str] | None = None, sizes: Sizes = VIT_B16) -> int:
    """The command line; returns the exit status."""
    title = "Image tower, forward"
    return command.main(title, __doc__, cases, arguments, sizes, has_classes=False)


if __name__ == "__main__":
    sys.exit(main())

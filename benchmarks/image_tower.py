"""The frozen image tower on 32 images, as in each training step and each batch of a test.

The plain side is CLIP's own image tower. Our side is the same tower after
``cache_image_features``; every image is new to it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from anchoropt_plugin.encoders.feature_cache import CachedFeatures
from benchmarks import command
from benchmarks.cost import image_tower
from benchmarks.harness import Bench, Case, Outcome, Side

BATCH = 32


def cases(bench: Bench) -> Iterator[Case]:
    """Yield the only case."""
    sizes = bench.sizes
    visual = bench.clip().visual.to(bench.device)
    images = bench.random(BATCH, 3, sizes.resolution, sizes.resolution)
    cost = image_tower(sizes, BATCH)

    @torch.no_grad()
    def encode(encoder: Callable[[Tensor], Tensor]) -> Outcome:
        return Outcome(encoder(images))

    plain = Side("plain", lambda: encode(visual), cost)
    ours = Side("ours", lambda: encode(CachedFeatures(visual)), cost)
    yield Case(f"batch {BATCH}", plain, [ours])


main = partial(command.main, "Image tower, forward", __doc__, cases, has_classes=False)

if __name__ == "__main__":
    sys.exit(main())

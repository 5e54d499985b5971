"""How long a step takes on a GPU, from its launches and its arithmetic; nothing is measured.

A step takes the larger of two times: to launch its operators, one after the other, and to compute
its FLOPs in half precision at half of the GPU's peak.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from anchoropt_plugin.encoders.clip_models import tokenize
from benchmarks.cost import VIT_B16, Cost, cut_text, fast_text, image_tower, plain_text
from benchmarks.plain import class_names
from benchmarks.printing import markdown_table

LAUNCH = 4.5e-6
"""Seconds from one launch to the next."""
PEAKS = {"A100": 312e12, "H100": 990e12}
"""FLOPs a second in half precision, dense."""
REACHED = 0.5
"""The part of the peak that a step reaches."""
CLASSES = (50, 200, 500, 1_000)
BATCH, N_SOFT, N_ANCHORS = 32, 4, 1
LEGEND = (
    f"the larger of launches at {LAUNCH * 1e6:.1f} µs each (L) and arithmetic (A) in half "
    f"precision at {REACHED:.0%} of the peak, ViT-B/16, batch {BATCH}"
)


class Estimate(NamedTuple):
    """The time of a step in seconds, and what binds: launches or arithmetic."""

    seconds: float
    binds: str


def estimate(launches: float, flops: float, peak: float) -> Estimate:
    """The time of a step on a GPU with ``peak`` FLOPs a second.

    >>> estimate(1000, 312e12, 312e12)
    Estimate(seconds=2.0, binds='A')
    """
    launch, compute = launches * LAUNCH, flops / (REACHED * peak)
    return Estimate(max(launch, compute), "L" if launch >= compute else "A")


def costs(n_classes: int) -> dict[str, dict[str, Cost]]:
    """The cost of the text branch and of a step of CoOp_AnchorOPT, by side."""
    names = class_names(n_classes)
    context = " ".join(["X"] * (N_SOFT + N_ANCHORS))
    eot = tokenize([f"{context} {name}." for name in names]).argmax(-1).tolist()
    images = image_tower(VIT_B16, BATCH)
    branch = {
        "plain": plain_text(VIT_B16, n_classes),
        "cut": cut_text(VIT_B16, eot),
        "ours": fast_text(VIT_B16, eot, 1 + N_SOFT + N_ANCHORS),
    }
    step = {side: cost.plus(images) for side, cost in branch.items()}
    step["plain"] = step["plain"].plus(plain_text(VIT_B16, n_classes, backward=False))
    return {"text branch": branch, "CoOp_AnchorOPT, fp16": step}


def tables(launches: Mapping[tuple[str, str], float]) -> str:
    """The estimates in Markdown, for the counts of launches by step and side."""
    sides = ("plain", "cut", "ours")
    heads = [f"{gpu}, {side}" for gpu in PEAKS for side in sides]
    rows = []
    by_classes = {n_classes: costs(n_classes) for n_classes in CLASSES}
    for name in by_classes[CLASSES[0]]:
        for n_classes in CLASSES:
            cost = by_classes[n_classes][name]
            cells = [name, f"{n_classes:,}"]
            for peak in PEAKS.values():
                for side in sides:
                    count = launches.get((name, side))
                    found = count and estimate(count, cost[side].flops, peak)
                    cells.append(f"{found.seconds * 1e3:.1f} {found.binds}" if found else "")
            rows.append(cells)
    return markdown_table(["a step", "classes", *heads], rows)

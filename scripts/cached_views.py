"""What CACHE_VIEWS does to accuracy: CoOp and CoOp_AnchorOPT on digits, with fewer and fewer views.

DATALOADER.CACHE_VIEWS keeps so many augmented views of each training picture, so that the image
tower sees each of them once; 0 draws every view anew.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from demo import COOP, Demo, Method, accuracy
from report import markdown, results_table
from rich.progress import track

VIEWS = (0, 16, 4, 1)


def main() -> int:
    """Train, test and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=REPOSITORY / "data", help="data folder")
    parser.add_argument("--output-dir", type=Path, default=REPOSITORY / "output/cached_views")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    args = parser.parse_args()
    demo = Demo(args.root, args.output_dir)
    methods = [
        Method(
            f"{trainer}, {views or 'new'} views", trainer, ["DATALOADER.CACHE_VIEWS", str(views)]
        )
        for trainer in (COOP.trainer, f"{COOP.trainer}_AnchorOPT")
        for views in VIEWS
    ]
    rows = []
    for method, seed in track([(m, s) for m in methods for s in args.seeds], "training"):
        demo.train(method, seed, lambda epoch, epochs: None)
        tests = {c: demo.logits(method, seed, c) for c in ("base", "new")}
        scores = {c: accuracy(test["logits"], test["labels"]) for c, test in tests.items()}
        rows.append({"method": method.name, "seed": seed, **scores})
    print(markdown(results_table(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

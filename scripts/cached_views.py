"""Measure the effect of CACHE_VIEWS on accuracy: CoOp and CoOp_AnchorOPT on digits.

DATALOADER.CACHE_VIEWS caches this number of augmented views of each training image, so that the
image encoder sees each view once. With 0 every view is new.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

VIEWS = (16, 4, 1)


def main() -> int:
    """Run the command line; return its exit status."""
    from anchoropt_plugin.experiments.command import protocol_of, run_experiment
    from anchoropt_plugin.experiments.experiment import Experiment
    from anchoropt_plugin.experiments.factors import varied
    from anchoropt_plugin.experiments.flags import build_parser
    from anchoropt_plugin.experiments.plan import host_method

    args = build_parser("python scripts/cached_views.py", __doc__).parse_args()
    protocol = protocol_of(args, datasets=["digits"], seeds=[1, 2, 3, 4, 5])
    methods = []
    for trainer, anchoropt in (("CoOp", False), ("CoOp_AnchorOPT", True)):
        default = host_method("CoOp", "tiny", anchoropt, name=f"{trainer}, new views")
        default, *others = varied(default, {"DATALOADER.CACHE_VIEWS": VIEWS}, True, "digits")
        named = zip(others, VIEWS, strict=True)
        methods += [default, *(replace(m, name=f"{trainer}, {views} views") for m, views in named)]
    experiment = Experiment("Cached augmented views", __doc__, protocol, methods)
    return run_experiment(experiment, args, "cached_views")


if __name__ == "__main__":  # the processes of runs import this file too
    from anchoropt_plugin.process.command_line import status_of

    sys.exit(status_of(main))

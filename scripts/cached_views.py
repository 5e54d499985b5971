"""What CACHE_VIEWS does to accuracy: CoOp and CoOp_AnchorOPT on digits, with fewer and fewer views.

DATALOADER.CACHE_VIEWS keeps so many augmented views of each training picture, so that the image
tower sees each of them once; 0 draws every view anew.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

VIEWS = (16, 4, 1)


def main() -> int:
    """Train, test and report."""
    from experiments.command import build_parser, parse, run_experiment
    from experiments.experiment import Experiment
    from experiments.factors import varied
    from experiments.plan import host_method
    from experiments.protocols import read_protocol

    args = parse(build_parser("cached_views.py", __doc__), None)
    args.output_dir = args.output_dir or REPOSITORY / "output" / "cached_views"
    changes = {"datasets": args.datasets or ["digits"], "seeds": args.seeds or [1, 2, 3, 4, 5]}
    protocol = read_protocol(args.protocol or "base2new").with_changes(
        {**changes, "shots": args.shots}
    )
    methods = []
    for trainer, anchoropt in (("CoOp", False), ("CoOp_AnchorOPT", True)):
        default = host_method("CoOp", "tiny", anchoropt, name=f"{trainer}, new views")
        default, *others = varied(default, {"DATALOADER.CACHE_VIEWS": VIEWS}, True, "digits")
        named = zip(others, VIEWS, strict=True)
        methods += [default, *(replace(m, name=f"{trainer}, {views} views") for m, views in named)]
    return run_experiment(Experiment("Augmented views kept", __doc__, protocol, methods), args)


if __name__ == "__main__":  # processes of single runs import this file, too
    from anchoropt_plugin.process.command_line import status_of

    sys.exit(status_of(main))

"""The demo: CoOp with and without AnchorOPT on shapes and digits, and controls for the gain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from .command import protocol_of, run_experiment
from .experiment import Experiment
from .factors import varied
from .flags import build_parser
from .plan import host_method, zero_shot_method
from .zero_shot_control import averaged_with_zero_shot, name_of

EPOCHS = {"shapes": {"OPTIM.MAX_EPOCH": 20}}
"""Of the 50 epochs of tiny.yaml, enough to show the effect on shapes; digits need all of them."""
SEEDS = {"shapes": range(1, 7), "digits": range(1, 4)}
"""Most where there is an effect: with fewer, its p-value says nothing."""
ABOUT = (
    "CoOp with and without AnchorOPT, and controls, on the embedded CLIP. Training: 16 images of "
    "each base class. Tests: the base classes, and the new classes, which training did not see. "
    "Shapes: 48 drawings such as “red striped hexagon”; base and new share no colour. Digits: "
    "scikit-learn's handwritten zero … four (base) and five … nine (new). On new classes AnchorOPT "
    "averages the logits of the prompt with the logits of the anchors. The last rows are controls: "
    "the anchor prompt alone, and CoOp averaged with zero-shot CLIP."
)


def main(description: str | None, argv: Sequence[str] | None = None) -> int:
    """Run the demo; return its exit status."""
    args = build_parser("python scripts/demo.py", description).parse_args(argv)
    host = partial(host_method, "CoOp", "tiny", of_dataset=EPOCHS)
    plain = host(anchoropt=False)
    default = host(anchoropt=True, reference=plain.name)
    _, alone = varied(default, {"averaging": ["anchors"]}, True, "digits")
    # Stage 1 does not depend on the seed, so the anchors of the first seed are those of all.
    alone = replace(alone, name="anchor prompt alone", reference="", has_seeds=False)
    methods = [zero_shot_method(plain.config), plain, default, alone]
    protocol = protocol_of(args, datasets=list(SEEDS))
    if not args.seeds:
        protocol = replace(protocol, seeds_of=SEEDS)
    more = partial(averaged_with_zero_shot, host=plain.name, reference=default.name)
    computed = {name_of(plain.name): more}
    experiment = Experiment("AnchorOPT on CoOp", ABOUT, protocol, methods, computed=computed)
    return run_experiment(experiment, args, "demo")

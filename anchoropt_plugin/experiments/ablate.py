"""AnchorOPT on one host with changed parts."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial

from ..config.merge import read_yaml
from ..errors import UserError
from .checkout import CHECKOUT
from .command import protocol_of, repository_of, run_experiment, with_preset
from .experiment import Experiment
from .factors import parse_grid, varied
from .flags import add_ablate, build_parser
from .plan import host_method, zero_shot_method
from .zero_shot_control import averaged_with_zero_shot, name_of

PRESETS = CHECKOUT.configs / "presets" / "ablate"
KEYS = (
    *("protocol", "host", "datasets", "shots", "seeds", "config", "grid"),
    *("one_at_a_time", "together"),
)
ABOUT = (
    "{host} with AnchorOPT, changed in one or more parts. The tables give the difference of each "
    "row to {default}, and of {default} to {host}."
)
CONTROL = (
    " Under base-to-new, the last row is a control without AnchorOPT: {host}, with its logits on "
    "new classes averaged with those of zero-shot CLIP."
)


def main(description: str | None, argv: Sequence[str] | None = None) -> int:
    """Run the command line of ``scripts/ablate.py``; return its exit status.

    Raises:
        UserError: an argument is unknown or invalid; nothing is written.
    """
    return run(build_parser("python scripts/ablate.py", description, add_ablate).parse_args(argv))


def run(args: argparse.Namespace) -> int:
    """Run the experiment of parsed arguments; return the exit status.

    Raises:
        UserError: an argument is unknown or invalid; nothing is written.
    """
    repository = repository_of(args)
    with_preset(args, PRESETS, KEYS)
    protocol = protocol_of(args)
    if args.host is None or args.config is None:
        raise UserError("give --host and --config, or --preset")
    # A grid on the command line replaces the preset's, and the changes that belong to it.
    given = {**(read_yaml(args.grid_file) if args.grid_file else {}), **parse_grid(args.words)}
    grid = given or args.grid
    if not grid:
        raise UserError("nothing is varied: give --grid KEY=v1,v2, --grid-file or --preset")
    grid = {name: values if isinstance(values, list) else [values] for name, values in grid.items()}
    host = partial(host_method, args.host, args.config, repository=repository)
    plain = host(anchoropt=False)
    default = host(anchoropt=True, reference=plain.name)
    methods = [
        *([zero_shot_method(default.config)] if repository.has_zero_shot else []),
        plain,
        *varied(
            default,
            grid,
            bool(args.one_at_a_time),
            protocol.datasets[0],
            () if given else args.together or (),
            args.opts,
        ),
    ]
    has_control = any(part.classes == "new" for part in protocol.tests) and repository.has_zero_shot
    about = (ABOUT + CONTROL * has_control).format(host=args.host, default=default.name)
    more = partial(averaged_with_zero_shot, host=plain.name, reference=default.name)
    computed = {name_of(plain.name): more} if has_control else {}
    title = f"Ablation of AnchorOPT on {args.host}"
    experiment = Experiment(title, about, protocol, methods, computed=computed)
    return run_experiment(experiment, args, f"ablate/{args.preset or args.host}")

"""AnchorOPT on one host with changed parts: the command line of ``scripts/ablate.py``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from anchoropt_plugin import UserError
from anchoropt_plugin.config.merge import read_yaml

from .averaging import averaged_with_zero_shot
from .command import build_parser, parse, protocol_of, run_experiment
from .experiment import Experiment
from .factors import parse_grid, varied
from .files import CONFIGS
from .plan import host_method, zero_shot_method

PRESETS = CONFIGS / "presets" / "ablate"
KEYS = ("protocol", "host", "datasets", "shots", "seeds", "config", "grid")
KEYS += ("one_at_a_time", "together")
ABOUT = (
    "{host} with AnchorOPT, changed in one or more parts. The tables give the difference of each "
    "row to {default}, and of {default} to {host}. Under base-to-new, the last row is a control "
    "without AnchorOPT: {host}, with its logits on new classes averaged with those of zero-shot "
    "CLIP."
)


def main(description: str | None, argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status.

    Raises:
        UserError: an argument is unknown or invalid; nothing is written.
    """
    parser = build_parser("ablate.py", description)
    add = parser.add_argument
    add("--host", metavar="NAME", help="a trainer that @anchoropt wraps")
    add("--config", metavar="NAME", help="a file of configs/trainers/<host>")
    add(
        "--grid",
        dest="words",
        action="append",
        default=[],
        metavar="KEY=v1,v2",
        help="values of a factor of configs/factors.yaml or of a config key; may be repeated",
    )
    add("--grid-file", metavar="FILE", help="a yaml file of lines `KEY: [v1, v2]`, as in --grid")
    add(
        "--one-at-a-time",
        action="store_true",
        default=None,
        help="vary each factor alone, not all combinations",
    )
    args = parse(parser, argv, PRESETS, KEYS)
    protocol = protocol_of(args)
    if args.host is None or args.config is None:
        raise UserError("give --host and --config, or --preset")
    # A grid on the command line replaces the preset's, and the changes that belong to it.
    given = {**(read_yaml(args.grid_file) if args.grid_file else {}), **parse_grid(args.words)}
    grid = given or args.grid
    if not grid:
        raise UserError("nothing is varied: give --grid KEY=v1,v2, --grid-file or --preset")
    grid = {name: values if isinstance(values, list) else [values] for name, values in grid.items()}
    plain = host_method(args.host, args.config, anchoropt=False)
    default = host_method(args.host, args.config, anchoropt=True, reference=plain.name)
    methods = [
        zero_shot_method(default.config),
        plain,
        *varied(
            default,
            grid,
            bool(args.one_at_a_time),
            protocol.datasets[0],
            () if given else args.together or (),
        ),
    ]
    about = ABOUT.format(host=args.host, default=default.name)
    experiment = Experiment(f"Ablation of AnchorOPT on {args.host}", about, protocol, methods)
    has_new = any(part.classes == "new" for part in protocol.tests)
    more = partial(averaged_with_zero_shot, host=plain.name, reference=default.name)
    folder = f"ablate/{args.preset or args.host}"
    return run_experiment(experiment, args, folder, more if has_new else None)

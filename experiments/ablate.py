"""AnchorOPT on one host, with its parts changed: the command line of ``scripts/ablate.py``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from anchoropt_plugin import UserError
from anchoropt_plugin.config.merge import read_yaml

from .command import build_parser, chosen, parse, read_preset, run_experiment
from .experiment import Experiment
from .factors import parse_grid, varied
from .files import CONFIGS, REPOSITORY
from .plan import Method, host_method
from .protocols import read_protocol

PRESETS = CONFIGS / "presets" / "ablate"
KEYS = ("protocol", "host", "datasets", "shots", "seeds", "config", "grid", "one_at_a_time")
ABOUT = (
    "{host} with AnchorOPT, changed in one or more parts. Differences are to {default}, that of "
    "{default} itself to {host}."
)


def main(description: str | None, argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status.

    Raises:
        UserError: something in it is unknown or cannot be; nothing is written.
    """
    parser = build_parser("ablate.py", description or "")
    add = parser.add_argument
    add("--preset", metavar="NAME", help="of configs/presets/ablate; flags win over it")
    add("--host", metavar="NAME", help="a trainer that @anchoropt knows")
    add("--config", metavar="NAME", help="of configs/trainers/<host>")
    add(
        "--grid",
        action="append",
        default=[],
        metavar="KEY=v1,v2",
        help="values of a factor of configs/factors.yaml, or of any config key; may be repeated",
    )
    add("--grid-file", metavar="FILE", help="yaml `KEY: [v1, v2]` of the same")
    add(
        "--one-at-a-time",
        action="store_true",
        default=None,
        help="vary each factor alone, not all combinations",
    )
    args = parse(parser, argv)
    preset = read_preset(PRESETS, args.preset, KEYS)
    protocol = read_protocol(chosen(args, preset, "protocol", "base2new")).with_changes(
        {key: chosen(args, preset, key) for key in ("datasets", "shots", "seeds")}
    )
    host, config = chosen(args, preset, "host"), chosen(args, preset, "config")
    if host is None or config is None:
        raise UserError("--host and --config are to be given, or --preset")
    args.output_dir = args.output_dir or REPOSITORY / "output/ablate" / (args.preset or host)
    given = {**(read_yaml(args.grid_file) if args.grid_file else {}), **parse_grid(args.grid)}
    grid = given or preset.get("grid", {})
    if not grid:
        raise UserError("nothing is varied: give --grid KEY=v1,v2, --grid-file or --preset")
    grid = {name: values if isinstance(values, list) else [values] for name, values in grid.items()}
    plain = host_method(host, config, anchoropt=False)
    default = host_method(host, config, anchoropt=True, reference=plain.name)
    one_at_a_time = bool(chosen(args, preset, "one_at_a_time", False))
    methods = [
        Method("ZeroshotCLIP", "ZeroshotCLIP", Path(default.config), trained=False),
        plain,
        *varied(default, grid, one_at_a_time, protocol.datasets[0]),
    ]
    about = ABOUT.format(host=host, default=default.name)
    experiment = Experiment(f"Ablation of AnchorOPT on {host}", about, protocol, methods)
    return run_experiment(experiment, args)

"""Hosts with and without AnchorOPT under a protocol: the command line of ``scripts/compare.py``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from anchoropt_plugin import UserError

from .command import build_parser, chosen, parse, read_preset, run_experiment
from .experiment import Experiment
from .files import CONFIGS, REPOSITORY
from .plan import Method, host_method
from .protocols import read_protocol
from .published import published_settings

PRESETS = CONFIGS / "presets" / "compare"
KEYS = ("protocol", "hosts", "datasets", "shots", "seeds", "config", "published", "zero_shot")
ABOUT = (
    "Prompt learners with and without AnchorOPT. On classes that were not trained on, AnchorOPT "
    "averages the prompt's logits with the anchors'."
)


def main(description: str | None, argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status.

    Raises:
        UserError: something in it is unknown or cannot be; nothing is written.
    """
    parser = build_parser("compare.py", description or "")
    add = parser.add_argument
    add("--preset", metavar="NAME", help="of configs/presets/compare; flags win over it")
    add("--hosts", "--host", nargs="+", metavar="NAME", help="trainers that @anchoropt knows")
    add("--config", metavar="NAME", help="of configs/trainers/<host>, for all hosts")
    add(
        "--anchoropt",
        choices=("both", "with", "without"),
        default="both",
        help="hosts with AnchorOPT, without it, or both (default)",
    )
    args = parse(parser, argv)
    preset = read_preset(PRESETS, args.preset, KEYS)
    if args.datasets is None and args.preset is None and args.protocol is None:
        raise UserError("nothing to compare: give --preset, or --hosts, --config and --datasets")
    name = chosen(args, preset, "protocol", "base2new")
    protocol = read_protocol(name).with_changes(
        {key: chosen(args, preset, key) for key in ("datasets", "shots", "seeds")}
    )
    args.output_dir = args.output_dir or REPOSITORY / "output" / "compare" / (args.preset or name)
    hosts = chosen(args, preset, "hosts")
    if not hosts:
        raise UserError("no --hosts are given")
    methods = _methods(hosts, chosen(args, preset, "config"), preset, protocol.datasets)
    kept = [method for method in methods if _wanted(method, args.anchoropt)]
    names = {method.name for method in kept}
    kept = [replace(m, reference=m.reference if m.reference in names else "") for m in kept]
    experiment = Experiment("Hosts with and without AnchorOPT", ABOUT, protocol, kept)
    return run_experiment(experiment, args)


def _methods(
    hosts: Sequence[str], config: str | None, preset: dict[str, Any], datasets: Sequence[str]
) -> list[Method]:
    methods = []
    for host in hosts:
        own, settings = config, {}
        if preset.get("published"):
            of_host, settings = published_settings(host)
            own = config or of_host
            unknown = [name for name in datasets if name not in settings]
            if unknown:
                raise UserError(
                    f"nothing is published for {host} on {', '.join(unknown)}: one of "
                    f"{', '.join(settings)}"
                )
        if own is None:
            raise UserError("no --config is given: a file of configs/trainers/<host>")
        plain = host_method(host, own, anchoropt=False)
        methods += [
            plain,
            host_method(host, own, anchoropt=True, reference=plain.name, of_dataset=settings),
        ]
    if preset.get("zero_shot", True):
        first = methods[0]
        methods.insert(0, Method("ZeroshotCLIP", "ZeroshotCLIP", first.config, trained=False))
    return methods


def _wanted(method: Method, which: str) -> bool:
    with_it = method.name != method.host
    return which == "both" or not method.trained or with_it == (which == "with")

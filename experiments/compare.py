"""Hosts with and without AnchorOPT under a protocol: the command line of ``scripts/compare.py``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from anchoropt_plugin import UserError

from .command import build_parser, parse, protocol_of, run_experiment
from .experiment import Experiment
from .files import CONFIGS
from .plan import Method, Settings, host_method, zero_shot_method
from .published import published_settings

PRESETS = CONFIGS / "presets" / "compare"
KEYS = ("protocol", "hosts", "datasets", "shots", "seeds", "config", "published", "zero_shot")
ABOUT = (
    "Prompt learners with and without AnchorOPT. On new classes, which training did not see, "
    "AnchorOPT averages the logits of the prompt with the logits of the anchors."
)


def main(description: str | None, argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status.

    Raises:
        UserError: an argument is unknown or invalid; nothing is written.
    """
    parser = build_parser("compare.py", description)
    add = parser.add_argument
    add("--hosts", "--host", nargs="+", metavar="NAME", help="trainers that @anchoropt wraps")
    add("--config", metavar="NAME", help="a file of configs/trainers/<host>, for all hosts")
    add(
        "--anchoropt",
        choices=("both", "with", "without"),
        default="both",
        help="hosts with AnchorOPT, without AnchorOPT, or both (default)",
    )
    args = parse(parser, argv, PRESETS, KEYS)
    if not (args.datasets or args.preset or args.protocol):
        raise UserError("nothing to compare: give --preset, or --hosts, --config and --datasets")
    protocol = protocol_of(args)
    if not args.hosts:
        raise UserError("no host is given: give --hosts, or --preset")
    methods = [
        method
        for method in methods_of(
            args.hosts,
            args.config,
            protocol.datasets,
            published=bool(args.published),
            zero_shot=args.zero_shot is not False,
        )
        if _is_wanted(method, args.anchoropt)
    ]
    names = {method.name for method in methods}
    methods = [replace(m, reference=m.reference if m.reference in names else "") for m in methods]
    experiment = Experiment("Hosts with and without AnchorOPT", ABOUT, protocol, methods)
    return run_experiment(experiment, args, f"compare/{args.preset or protocol.name}")


def methods_of(
    hosts: Sequence[str],
    config: str | None,
    datasets: Sequence[str],
    published: bool = False,
    zero_shot: bool = True,
) -> list[Method]:
    """Return each host without and with AnchorOPT, by default after zero-shot CLIP.

    Raises:
        UserError: a host, a config file or published settings are missing.
    """
    methods = []
    for host in hosts:
        own = config
        settings: dict[str, Settings] = {}
        if published:
            of_host, settings = published_settings(host)
            own = config or of_host
            unknown = [name for name in datasets if name not in settings]
            if unknown:
                raise UserError(
                    f"nothing is published for {host} on {', '.join(unknown)}: choose from "
                    f"{', '.join(settings)}"
                )
        if own is None:
            raise UserError("no --config is given: name a file of configs/trainers/<host>")
        plain = host_method(host, own, anchoropt=False)
        methods += [
            plain,
            host_method(host, own, anchoropt=True, reference=plain.name, of_dataset=settings),
        ]
    return [zero_shot_method(methods[0].config), *methods] if zero_shot else methods


def _is_wanted(method: Method, which: str) -> bool:
    has_anchoropt = method.name != method.host
    return which == "both" or not method.trained or has_anchoropt == (which == "with")

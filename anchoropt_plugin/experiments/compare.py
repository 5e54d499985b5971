"""Hosts with and without AnchorOPT under a protocol."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import UserError
from ..training.settings import PRESETS as METHOD_PRESETS
from .checkout import CHECKOUT
from .command import protocol_of, repository_of, run_experiment, with_preset
from .experiment import Experiment
from .flags import add_compare, build_parser
from .plan import NODE, Method, Settings, host_method, zero_shot_method
from .published import RELEASED, check_anchors, published_settings, released_descriptions
from .repository import Repository

PRESETS = CHECKOUT.configs / "presets" / "compare"
KEYS = ("protocol", "hosts", "datasets", "shots", "seeds", "config", "published", "zero_shot")
ABOUT = (
    "Prompt learners with and without AnchorOPT. On classes that training did not see, "
    "AnchorOPT averages the logits of the prompt with the logits of the anchors."
)
OURS = " (our defaults)"
"""Behind a trainer's name: the row of this repository's defaults, beside the released method."""
MARKS = {
    RELEASED: f"Rows marked{RELEASED} run the released method, bugs included "
    f"({NODE}.PRESET reference).",
    OURS: f"Rows marked{OURS} run the defaults of this repository.",
}


def main(description: str | None, argv: Sequence[str] | None = None) -> int:
    """Run the command line of ``scripts/compare.py``; return its exit status.

    Raises:
        UserError: an argument is unknown or invalid; nothing is written.
    """
    return run(build_parser("python scripts/compare.py", description, add_compare).parse_args(argv))


def run(args: argparse.Namespace) -> int:
    """Run the experiment of parsed arguments; return the exit status.

    Raises:
        UserError: an argument is unknown or invalid; nothing is written.
    """
    repository = repository_of(args)
    with_preset(args, PRESETS, KEYS)
    if not (args.datasets or args.preset or args.protocol):
        raise UserError(
            "nothing to compare: give --preset, or --hosts, --config and --datasets; for trainers "
            "of another repository, --repository DIR, too"
        )
    protocol = protocol_of(args)
    if not args.hosts:
        raise UserError("no host is given: give --hosts, or --preset")
    which = args.method or ("released" if args.published else "defaults")
    if which != "defaults" and f"{NODE}.PRESET" in args.opts[::2]:
        raise UserError(f"give --method or {NODE}.PRESET, not both: --method sets that key")
    methods = [
        method
        for method in methods_of(
            args.hosts,
            args.config,
            protocol.datasets,
            published=bool(args.published),
            zero_shot=args.zero_shot is not False,
            which=which,
            templates=args.templates or not args.published,
            descriptions=args.descriptions,
            repository=repository,
        )
        if _is_wanted(method, args.anchoropt)
    ]
    names = {method.name for method in methods}
    methods = [replace(m, reference=m.reference if m.reference in names else "") for m in methods]
    about = _about(methods, args.opts)
    title = "Hosts with and without AnchorOPT"
    experiment = Experiment(title, about, protocol, methods, check_anchors)
    return run_experiment(experiment, args, f"compare/{args.preset or protocol.name}")


def methods_of(
    hosts: Sequence[str],
    config: str | None,
    datasets: Sequence[str],
    published: bool = False,
    zero_shot: bool = True,
    which: str = "defaults",
    templates: bool = True,
    descriptions: Path | None = None,
    repository: Repository = CHECKOUT,
) -> list[Method]:
    """Return each host without and with AnchorOPT, by default after zero-shot CLIP.

    Args:
        hosts: names of host trainers.
        config: a file of ``configs/trainers/<host>``; None for the published one.
        datasets: the data sets to train on.
        published: whether each host and data set has its published settings.
        zero_shot: whether zero-shot CLIP is the first method.
        which: ``released``, ``defaults`` or ``both``: the method that AnchorOPT stands for.
        templates: whether stage 1 may learn from templates.
        descriptions: the released folder of descriptions.
        repository: the repository of the hosts.

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
        if descriptions is not None:
            settings = {
                name: {**settings.get(name, {}), **released_descriptions(descriptions, name)}
                for name in datasets
            }
        plain = host_method(host, own, anchoropt=False, repository=repository)
        ours = host_method(
            host,
            own,
            anchoropt=True,
            repository=repository,
            reference=plain.name,
            of_dataset=settings,
            templates=templates,
        )
        released = replace(
            ours,
            name=ours.name + RELEASED,
            settings={f"{NODE}.PRESET": "reference"},
            factors={"preset": "reference"},
        )
        if published or which == "both":
            ours = replace(ours, name=ours.name + OURS)
        methods += [
            plain,
            *{"released": [released], "defaults": [ours]}.get(which, [released, ours]),
        ]
    return (
        [zero_shot_method(methods[0].config), *methods]
        if zero_shot and repository.has_zero_shot
        else methods
    )


def _about(methods: Sequence[Method], opts: Sequence[str]) -> str:
    """Return the text below the title: the method of each row, and what all rows change of it."""
    marks = [mark for mark in MARKS if any(method.name.endswith(mark) for method in methods)]
    texts = [ABOUT, *(MARKS[mark] for mark in marks)]
    preset = METHOD_PRESETS["reference"]
    names = {*preset.settings, *(name for of_host in preset.of_host.values() for name in of_host)}
    keys = {f"{NODE}.{name.upper()}" for name in names}
    pairs = zip(opts[::2], opts[1::2], strict=False)
    changed = [f"{key} {value}" for key, value in pairs if key in keys]
    if RELEASED in marks and changed:
        texts.append(f"Changed in all rows: {', '.join(changed)}.")
    return " ".join(texts)


def _is_wanted(method: Method, which: str) -> bool:
    has_anchoropt = method.name != method.host
    return which == "both" or not method.trained or has_anchoropt == (which == "with")

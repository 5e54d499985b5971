"""The command ``describe``: its arguments, the class names and the summary."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from ...errors import UserError
from ...files.readers import read_names
from ...process.user_code import import_user_module
from .client import ATTEMPTS, TEMPLATE, Descriptions, ask_for_all, names_class

HELP = "ask a language model for class descriptions"
KEY = "OPENAI_API_KEY"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this command."""
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="class name")
    add("--classes-file", metavar="FILE", help="file of class names, one per line")
    add("--dataset-config-file", metavar="FILE", help="yaml of a data set, for its class names")
    add("--root", help="folder of the data sets")
    add("--output", required=True, type=Path, metavar="FILE", help="json file to write or complete")
    add("--model", required=True, help="the endpoint's name of the language model")
    add("--base-url", metavar="URL", help="URL of the endpoint (default: OpenAI's)")
    add("--per-class", type=int, default=10, metavar="N", help="sentences a class (default: 10)")
    add("--jobs", type=int, default=4, metavar="N", help="simultaneous requests (default: 4)")
    add("--retries", type=int, default=5, metavar="N", help="retries of a request (default: 5)")
    add("--timeout", type=float, default=60.0, metavar="S", help="seconds a request (default: 60)")
    add(
        "--template",
        default=TEMPLATE,
        metavar="TEXT",
        help="the question, with {name} and {count}, asking for one sentence per line "
        f"(default: {TEMPLATE})",
    )


def run(args: argparse.Namespace) -> int:
    """Ask, write the file and print a summary.

    Returns:
        0, or 1 if some classes have no descriptions yet.

    Raises:
        UserError: an invalid argument, a missing `openai`, or an endpoint that refuses.
    """
    try:
        import openai
    except ImportError:
        raise UserError("describe needs openai: pip install 'anchoropt-plugin[describe]'") from None
    _check(args)
    names = _class_names(args)
    into = Descriptions(args.output, args.per_class)
    todo = into.missing(names)
    key = os.environ.get(KEY)
    if not key and not args.base_url:
        raise UserError(f"{KEY} is not set: set it for OpenAI's endpoint, or give a --base-url")
    failed: dict[str, str] = {}
    console = Console(stderr=True)
    print(
        f"{len(todo)} requests, one for each class that is not yet in {args.output}; up to "
        f"{ATTEMPTS * len(todo)} if answers have too few sentences, besides {args.retries} retries "
        "of each that fails",
        flush=True,
    )
    with Progress(console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("classes", total=len(todo))

        def on_class(name: str, reason: str) -> None:
            progress.advance(bar)
            if reason:
                failed[name] = reason
                progress.console.print(f"failed {escape(name)}: {escape(reason)}", soft_wrap=True)

        async def ask() -> None:
            async with openai.AsyncOpenAI(
                api_key=key or "none",
                base_url=args.base_url,
                timeout=args.timeout,
                max_retries=args.retries,
            ) as client:
                await ask_for_all(
                    client, args.model, todo, into, args.template, args.jobs, on_class
                )

        if todo:
            asyncio.run(ask())
    described = len(todo) - len(failed)
    print(f"{described} classes described, {len(names) - len(todo)} already there: {args.output}")
    done = (name for name in todo if name not in failed)
    strange = [
        f"{name}: {sentence!r}"
        for name in done
        for sentence in into.of(name)
        if not names_class(sentence, name)
    ]
    if strange:
        print(
            f"Note: {len(strange)} sentences do not have the name of their class, such as "
            f"{strange[0]}: stage 1 learns from each sentence, so read the file and mend them"
        )
    if failed:
        print(f"{len(failed)} failed: {', '.join(failed)}; to retry, run the same command again")
    return 1 if failed else 0


def _check(args: argparse.Namespace) -> None:
    for flag, low in (("per_class", 1), ("jobs", 1), ("retries", 0)):
        if getattr(args, flag) < low:
            raise UserError(
                f"--{flag.replace('_', '-')} is {getattr(args, flag)}, but must be {low} or more"
            )
    if not args.timeout > 0:
        raise UserError(f"--timeout is {args.timeout}, but must be more than 0 seconds")
    sources = [bool(args.names), bool(args.classes_file), bool(args.dataset_config_file)]
    if sum(sources) != 1:
        raise UserError("give exactly one of: class names, --classes-file, --dataset-config-file")
    try:
        filled = args.template.format(name="\0", count=args.per_class)
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(
            f"--template: only {{name}} and {{count}} may be in braces, not {error}"
        ) from error
    if "\0" not in filled:
        raise UserError("--template: {name} is missing: put it where the class name belongs")
    folder = args.output.parent
    if not os.access(folder, os.W_OK):
        raise UserError(f"--output: the folder {folder} is missing, or cannot be written to")


def _class_names(args: argparse.Namespace) -> list[str]:
    names = args.names
    if args.classes_file:
        names = read_names(args.classes_file)
    if args.dataset_config_file:
        names = _names_of_dataset(args.dataset_config_file, args.root)
    names = [name for name in names if name.strip()]
    if not names:
        raise UserError(f"there is no class name in {args.classes_file}")
    return names


def _names_of_dataset(config: str, root: str | None) -> list[str]:
    if not Path("trainers", "config.py").is_file() or not Path("train.py").is_file():
        raise UserError(
            f"{Path.cwd()} is not a checkout of anchoropt-plugin, which defines the data sets: "
            "change into a checkout, or give class names"
        )
    train = import_user_module("train")
    words = ["--dataset-config-file", config, *(["--root", root] if root else [])]
    cfg = train.setup_cfg(train.build_parser().parse_args([*words, "VERBOSE", "False"]))
    build = importlib.import_module("dassl.data.datasets").build_dataset
    return list(build(cfg).classnames)

"""``anchoropt <command>``, or ``python -m anchoropt_plugin <command>``."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from typing import Any

import torch

from .commands import all_commands
from .dassl_compat import is_installed
from .encoders.pkg_resources_stand_in import offered_pkg_resources
from .process import distributed
from .process.code_version import package_version
from .process.command_line import Parser, status_of
from .process.program import MODULE, program


def build_parser() -> argparse.ArgumentParser:
    """Return the command-line parser, with one sub-command for each module of ``commands``."""
    typed = program()
    parser = Parser(
        prog=typed,
        description="AnchorOPT for CLIP prompt learners.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Versions, nargs=0, help="print the versions and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module in all_commands().items():
        command = commands.add_parser(
            name,
            help=module.HELP,
            description=(module.__doc__ or "").replace(MODULE, typed),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(interrupted="interrupted")
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


class _Versions(argparse.Action):
    """Print the versions, which are looked up only then, and exit."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        print(_versions())
        parser.exit()


def _versions() -> str:
    """Return the versions that a report of a bug needs, one per line."""
    dassl = "not installed; this package's runtime is used"
    if is_installed():
        module: Any = importlib.import_module("dassl")
        dassl = f"{getattr(module, '__version__', 'of unknown version')} in {module.__path__[0]}"
    return f"anchoropt-plugin {package_version()}\ntorch {torch.__version__}\nDassl {dassl}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: see ``status_of``."""

    args = argparse.Namespace()

    def parse() -> None:
        build_parser().parse_args(argv, args)

    with offered_pkg_resources():  # a repository's own clip may import it
        return status_of(parse) or status_of(lambda: args.run(args), interrupted=args.interrupted)


if __name__ == "__main__":
    distributed.leave(main())

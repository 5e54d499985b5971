"""``python -m anchoropt_plugin <command>``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .commands import all_commands
from .process.command_line import Parser, status_of


def build_parser() -> argparse.ArgumentParser:
    """Return the command-line parser, with one sub-command for each module of ``commands``."""
    parser = Parser(
        prog="python -m anchoropt_plugin", description="AnchorOPT for CLIP prompt learners."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module in all_commands().items():
        command = commands.add_parser(
            name,
            help=module.HELP,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: see ``status_of``."""

    def command() -> int:
        args = build_parser().parse_args(argv)
        return int(args.run(args))

    return status_of(command)


if __name__ == "__main__":
    sys.exit(main())

r"""Compare hosts with and without AnchorOPT over data sets and seeds, under a protocol.

    python -m anchoropt_plugin compare --preset embedded
    python -m anchoropt_plugin compare --preset published --hosts CoOp --datasets caltech101 dtd \
        --root /data --descriptions ATPrompt/templates --method both
    python -m anchoropt_plugin compare --hosts CoOp MaPLe --datasets digits --config tiny \
        --seeds 1 2 3
    python -m anchoropt_plugin compare --protocol few_shot --hosts CoOp --config tiny \
        --datasets digits

To resume, run the same command again: finished runs are skipped, killed runs resume. Failed runs
are listed at the end. The output folder has the layout of the public scripts, and in addition
results.csv, tables.md, tables.tex, tables.csv and report.html.
"""

from __future__ import annotations

import argparse

from ..experiments import check_packages
from ..experiments.flags import add_compare
from ..process.command_line import Parser

HELP = "compare hosts with and without AnchorOPT over data sets and seeds"


def add_arguments(parser: Parser) -> None:
    """Add the arguments of this command."""
    add_compare(parser)


def run(args: argparse.Namespace) -> int:
    """Run the experiment; return the exit status.

    Raises:
        UserError: a package is missing, or an argument is invalid; nothing is written.
    """
    check_packages()
    from ..experiments import compare

    return compare.run(args)

r"""Change AnchorOPT part by part on one host, and measure the effect of each part.

    python -m anchoropt_plugin ablate --preset embedded
    python -m anchoropt_plugin ablate --host CoOp --config tiny --datasets digits \
        --grid position=sinkhorn,identity --grid kd_weight=0,1,10
    python -m anchoropt_plugin ablate --preset embedded --grid anchor_length=1,2,4 \
        --grid OPTIM.LR=0.01,0.02

Without --one-at-a-time all combinations are run. To resume, run the same command again: finished
runs are skipped, killed runs resume. The report is in the output folder, as with compare.
"""

from __future__ import annotations

import argparse

from ..experiments import check_packages
from ..experiments.flags import add_ablate
from ..process.command_line import Parser

HELP = "change AnchorOPT part by part, and measure the effect of each part"


def add_arguments(parser: Parser) -> None:
    """Add the arguments of this command."""
    add_ablate(parser)


def run(args: argparse.Namespace) -> int:
    """Run the experiment; return the exit status.

    Raises:
        UserError: a package is missing, or an argument is invalid; nothing is written.
    """
    check_packages()
    from ..experiments import ablate

    return ablate.run(args)

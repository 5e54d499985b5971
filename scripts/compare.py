r"""Compare hosts with and without AnchorOPT, over data sets and seeds, under a protocol.

    python scripts/compare.py --preset embedded
    python scripts/compare.py --preset published --hosts CoOp --datasets caltech101 dtd \
        --root /data TRAINER.ANCHOROPT.DESCRIPTIONS descriptions.json
    python scripts/compare.py --hosts CoOp MaPLe --datasets digits --seeds 1 2 3 --config tiny
    python scripts/compare.py --protocol few_shot --hosts CoOp --datasets digits --config tiny

Runs that are finished are left as they are, a run that was killed goes on, and failures are listed
at the end. The output folder has the public layout, and results.csv, tables.md, tables.tex,
tables.csv and report.html on top.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":  # processes of single runs import this file, too
    from anchoropt_plugin.process.command_line import status_of

    def _main() -> int:
        # In here, as a package may be missing.
        from experiments.compare import main

        return main(__doc__)

    sys.exit(status_of(_main, interrupted="interrupted; run it again to go on"))

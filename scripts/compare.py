r"""Compare hosts with and without AnchorOPT over data sets and seeds, under a protocol.

    python scripts/compare.py --preset embedded
    python scripts/compare.py --preset published --hosts CoOp --datasets caltech101 dtd \
        --root /data --descriptions ATPrompt/templates --method both
    python scripts/compare.py --hosts CoOp MaPLe --datasets digits --seeds 1 2 3 --config tiny
    python scripts/compare.py --protocol few_shot --hosts CoOp --datasets digits --config tiny

To resume, run the same command again: finished runs are skipped, killed runs resume. Failed runs
are listed at the end. The output folder has the layout of the public scripts, and in addition
results.csv, tables.md, tables.tex, tables.csv and report.html.
"""

from __future__ import annotations

import sys

from experiment_script import run

if __name__ == "__main__":  # the processes of runs import this file too
    sys.exit(run("compare", __doc__))

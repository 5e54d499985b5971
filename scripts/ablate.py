r"""Change AnchorOPT part by part on one host, and measure the effect of each part.

    python scripts/ablate.py --preset embedded
    python scripts/ablate.py --host CoOp --config tiny --datasets digits \
        --grid position=sinkhorn,identity --grid kd_weight=0,1,10
    python scripts/ablate.py --preset embedded --grid anchor_length=1,2,4 --grid OPTIM.LR=0.01,0.02

Without --one-at-a-time all combinations are run. To resume, run the same command again: finished
runs are skipped, killed runs resume. The report is in the output folder, as with compare.py.
"""

from __future__ import annotations

import sys

from experiment_script import run

if __name__ == "__main__":  # the processes of runs import this file too
    sys.exit(run("ablate", __doc__))

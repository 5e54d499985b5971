r"""Change AnchorOPT part by part on one host, and tell what each part is worth.

    python scripts/ablate.py --preset embedded
    python scripts/ablate.py --host CoOp --config tiny --datasets digits \
        --grid position=sinkhorn,identity --grid kd_weight=0,1,10
    python scripts/ablate.py --preset embedded --grid anchor_length=1,2,4 --grid OPTIM.LR=0.01,0.02

Without --one-at-a-time all combinations are run. Everything else is as in compare.py: finished runs
stay, killed ones go on, and the report lies in the output folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":  # processes of single runs import this file, too
    from anchoropt_plugin.process.command_line import status_of

    def _main() -> int:
        # In here, as a package may be missing.
        from experiments.ablate import main

        return main(__doc__)

    sys.exit(status_of(_main, interrupted="interrupted; run it again to go on"))

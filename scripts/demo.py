"""Train CoOp with and without AnchorOPT on real digits, and show what came out.

Zero-shot CLIP, CoOp and CoOp_AnchorOPT on five digits (base), with tests on them and on the five
others (new), over several seeds, with the controls that tell where a gain comes from. Nothing is
downloaded; a run that is there already is not run again.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":  # processes of single runs import this file, too
    from anchoropt_plugin.process.command_line import status_of

    def _main() -> int:
        # In here, as a package may be missing.
        from experiments.demo import main

        return main(__doc__)

    sys.exit(status_of(_main, interrupted="interrupted; run it again to go on"))

"""Train CoOp with and without AnchorOPT on real digits, and report the results.

Zero-shot CLIP, CoOp and CoOp_AnchorOPT: training on five digits (base classes), tests on these and
on the other five (new classes), over several seeds, with controls that explain the gain. Nothing is
downloaded. Finished runs are skipped.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

if __name__ == "__main__":  # the processes of runs import this file too
    from anchoropt_plugin.process.command_line import status_of

    sys.exit(
        status_of(  # imports the package itself: a missing dependency is one line then
            lambda: import_module("experiments.demo").main(__doc__),
            interrupted="interrupted; to resume, run the same command again",
        )
    )

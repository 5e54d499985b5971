"""Train CoOp with and without AnchorOPT on shapes and on real digits, and report the results.

Zero-shot CLIP, CoOp and CoOp_AnchorOPT: training on half of the classes (base), tests on these
and on the other half (new), over several seeds, with controls that explain the gain. Nothing is
downloaded. Finished runs are skipped. `--datasets shapes` or `--seeds 1 2 3` makes it shorter.
"""

from __future__ import annotations

import sys

from experiment_script import run

if __name__ == "__main__":  # the processes of runs import this file too
    sys.exit(run("demo", __doc__))

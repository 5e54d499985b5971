"""Check that a trainer works with AnchorOPT, by trying it.

    python -m anchoropt_plugin check trainers.coop:CoOp
    python -m anchoropt_plugin check trainers.mine:Mine TRAINER.MINE.N_CTX 4

The check builds the trainer on a CLIP of OpenAI's sizes with random weights, trains an epoch of
one batch of random images, and saves and loads a checkpoint. It downloads nothing and needs no data
set. Run the command in the trainer's repository. The trainer's config keys come from the train.py
there or, without one, from public trainers; KEY VALUE pairs add more, such as keys that a train.py
sets by flags of its own. Some trainers work only with class names that they know (--classes,
DATASET.NAME) or with one backbone (MODEL.BACKBONE.NAME).
"""

from __future__ import annotations

from .command import HELP, add_arguments, run

__all__ = ["HELP", "add_arguments", "run"]

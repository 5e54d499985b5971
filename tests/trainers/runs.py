"""Command lines and trainers of short runs on Digits, for all hosts."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import train
from anchoropt_plugin.files import checkpoints
from anchoropt_plugin.process.randomness import set_random_seed
from dassl.engine import build_trainer

ROOT = Path(train.__file__).parent


def command(root, out, trainer, classes="base", flags=(), keys=()):
    """Return the command line of a run of two epochs with the tiny CLIP."""
    host = re.sub("_(AnchorOPT|Bare)$", "", trainer)
    return [
        *("--root", str(root), "--output-dir", str(out), "--trainer", trainer, "--seed", "1"),
        *("--dataset-config-file", str(ROOT / "configs/datasets/digits.yaml")),
        *("--config-file", str(ROOT / f"configs/trainers/{host}/tiny.yaml")),
        *flags,
        *("DATASET.SUBSAMPLE_CLASSES", classes, "OPTIM.MAX_EPOCH", "2", "DATASET.NUM_SHOTS", "4"),
        *("TRAINER.ANCHOROPT.ANCHOR_EPOCHS", "2"),
        *keys,
    ]


def build(root, out, trainer, classes="base", keys=()):
    """Return the trainer of such a run, before its training."""
    args = train.build_parser().parse_args(command(root, out, trainer, classes, keys=keys))
    cfg = train.setup_cfg(args)
    set_random_seed(cfg.SEED)
    return build_trainer(cfg)


@functools.cache
def register_bare(module):
    """Register the trainers X of ``trainers/{module}.py`` without the decorator, as X_Bare."""
    source = (ROOT / f"trainers/{module}.py").read_text()
    decorated = r"^@anchoropt.*\n(@TRAINER_REGISTRY.*\n)class (\w+)\("
    source, count = re.subn(decorated, r"\1class \2_Bare(", source, flags=re.MULTILINE)
    assert count and "@anchoropt" not in source
    exec(compile(source, "bare.py", "exec"), {"__name__": "bare", "__package__": "trainers"})


def without_its_run(folder):
    """Let the checkpoint in a folder say nothing of its run, as those of Dassl."""
    (path,) = folder.rglob("model.pth.tar-*")
    checkpoint = checkpoints.load(path)
    del checkpoint["run"]
    checkpoints.save(checkpoint, path)

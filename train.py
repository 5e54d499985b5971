r"""Train and test a prompt learner: the command line of CoOp, with AnchorOPT plugged in.

    python train.py --root data --trainer CoOp_AnchorOPT --seed 1 \
        --dataset-config-file configs/datasets/digits.yaml \
        --config-file configs/trainers/CoOp/tiny.yaml \
        --output-dir output/digits DATASET.NUM_SHOTS 16

The configuration is built in this order, later values winning: defaults, data set file, method
file, flags, KEY VALUE pairs.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

if __name__ == "__main__":

    def _stop(number: int, _: object) -> NoReturn:
        """Answer ctrl-C while the imports below run: they take seconds, and catch exceptions."""
        print("interrupted", file=sys.stderr)
        os._exit(128 + number)

    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)

from yacs.config import CfgNode

import anchoropt_plugin  # first: it makes `import dassl` work
import datasets  # noqa: F401  (registers the data sets)
import trainers  # noqa: F401  (registers the trainers)
from anchoropt_plugin import UserError
from anchoropt_plugin.config.check import check_values
from anchoropt_plugin.config.merge import merge_file, merge_list
from anchoropt_plugin.config.record import check_same_run, write_record
from anchoropt_plugin.dassl_compat.finite_checks import training_errors
from anchoropt_plugin.dassl_compat.utils import (
    check_availability,
    collect_env_info,
    setup_logger,
    withdraw_log,
)
from anchoropt_plugin.process import distributed
from anchoropt_plugin.process.command_line import Parser, status_of
from anchoropt_plugin.process.randomness import set_random_seed
from anchoropt_plugin.training.two_stages import TwoStages
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY, build_trainer
from trainers.host import PromptTrainer

_HOSTS = {
    "COOP": {
        "N_CTX": 16,
        "CSC": False,
        "CTX_INIT": "",
        "PREC": "fp16",  # fp16, fp32 or amp
        "CLASS_TOKEN_POSITION": "end",  # end, middle or front
    },
    "COCOOP": {"N_CTX": 16, "CTX_INIT": "", "PREC": "fp16"},
    "MAPLE": {"N_CTX": 2, "CTX_INIT": "a photo of a", "PREC": "fp16", "PROMPT_DEPTH": 9},
    # DePT has its context under COOP.
    "LINEAR_PROBE": {"TYPE": "linear", "WEIGHT": 0.7, "TEST_TIME_FUSION": True},
    "FILM": {"LINEAR_PROBE": True},
    "ATPROMPT": {
        "USE_ATPROMPT": False,
        "N_ATT1": 4,
        "N_ATT2": 4,
        "N_ATT3": 4,
        "ATT_NUM": 0,
        "ATT1_TEXT": "none",
        "ATT2_TEXT": "none",
        "ATT3_TEXT": "none",
    },
}

# Which config key a flag sets.
_FLAGS = {
    "root": "DATASET.ROOT",
    "output_dir": "OUTPUT_DIR",
    "resume": "RESUME",
    "seed": "SEED",
    "source_domains": "DATASET.SOURCE_DOMAINS",
    "target_domains": "DATASET.TARGET_DOMAINS",
    "transforms": "INPUT.TRANSFORMS",
    "trainer": "TRAINER.NAME",
    "backbone": "MODEL.BACKBONE.NAME",
    "head": "MODEL.HEAD.NAME",
}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = Parser(
        prog="train.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--root", help="folder of the data sets (of the pictures, for ImageFolder)")
    add("--output-dir", help="folder for log.txt, checkpoints and scalars (default: ./output)")
    add("--resume", help="output folder of the run to go on with (default: --output-dir)")
    add("--seed", type=int, help="0 or more fixes all random numbers (default: -1, not fixed)")
    add("--source-domains", nargs="+", metavar="NAME", help="domains for training")
    add("--target-domains", nargs="+", metavar="NAME", help="domains for test")
    add("--transforms", nargs="+", metavar="NAME", help="replaces INPUT.TRANSFORMS")
    add("--config-file", metavar="FILE", help="yaml of the method, in configs/trainers")
    add("--dataset-config-file", metavar="FILE", help="yaml of the data set, in configs/datasets")
    add("--trainer", help=f"one of {', '.join(sorted(TRAINER_REGISTRY.registered_names()))}")
    add("--backbone", help="replaces MODEL.BACKBONE.NAME")
    add("--head", help="replaces MODEL.HEAD.NAME")
    add("--eval-only", action="store_true", help="test a model that was trained before")
    add("--model-dir", default="", help="with --eval-only: the output folder of its run")
    add(
        "--load-epoch",
        type=int,
        help="with --eval-only: of which epoch (default: the best; -1: the last)",
    )
    add("--no-train", action="store_true", help="build everything, and stop")
    add(
        "opts",
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help="config keys and values, after all flags: OPTIM.LR 0.01 DATASET.NUM_SHOTS 4",
    )
    return parser


def extend_cfg(cfg: CfgNode) -> None:
    """Add the keys of the hosts and of AnchorOPT to Dassl's."""
    for name, defaults in _HOSTS.items():
        cfg.TRAINER[name] = CfgNode(defaults)
    cfg.OPTIM.LR_EXP = 6.5  # with STAGED_LR: the learning rate of DePT's NEW_LAYERS is LR * LR_EXP
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"  # all, base or new
    cfg.DATASET.TEMPLATE = "a photo of a {}."  # the prompt of ZeroshotCLIP
    anchoropt_plugin.extend_cfg(cfg)


def setup_cfg(args: argparse.Namespace) -> CfgNode:
    """Return the frozen configuration that the command line asks for.

    Raises:
        UserError: Something in it is unknown, missing or of the wrong type.
    """
    late = [word for word in args.opts if word.startswith("--")]
    if late:
        raise UserError(f"flags come before KEY VALUE pairs: move {late[0]} to the front")
    cfg = get_cfg_default()
    extend_cfg(cfg)
    for path in (args.dataset_config_file, args.config_file):
        if path:
            merge_file(cfg, path)
    for flag, key in _FLAGS.items():
        value = getattr(args, flag)
        if value is not None:
            section, _, name = key.rpartition(".")
            node = cfg
            for part in filter(None, section.split(".")):
                node = node[part]
            node[name] = value
    merge_list(cfg, args.opts)
    settings = cfg.TRAINER.ANCHOROPT
    beside = Path(__file__).resolve().parent / settings.DESCRIPTIONS
    if settings.DESCRIPTIONS and not Path(settings.DESCRIPTIONS).exists() and beside.exists():
        # The data sets' yaml files name those of this repository, wherever it is run from.
        settings.DESCRIPTIONS = str(beside)
    cfg.freeze()
    return cfg


def check(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Check what can be checked before anything is written.

    Raises:
        UserError: A value cannot be, a name is unknown, a folder missing or another run's.
    """
    training = not (args.eval_only or args.no_train)
    check_values(cfg, training)
    check_availability(cfg.TRAINER.NAME, TRAINER_REGISTRY.registered_names(), "--trainer")
    check_availability(cfg.DATASET.NAME, DATASET_REGISTRY.registered_names(), "DATASET.NAME")
    name = cfg.TRAINER.NAME
    trainer = TRAINER_REGISTRY.get(name)
    if cfg.DATALOADER.K_TRANSFORMS > 1 and issubclass(trainer, PromptTrainer):
        raise UserError(f"DATALOADER.K_TRANSFORMS must be 1: {name} takes one view of a picture")
    if cfg.TRAINER.ANCHOROPT.USE_ANCHOROPT and not issubclass(trainer, TwoStages):
        raise UserError(
            f"TRAINER.ANCHOROPT.USE_ANCHOROPT is set, but --trainer {name} runs without AnchorOPT: "
            f"give --trainer {name}_AnchorOPT"
        )
    if not cfg.DATASET.ROOT:
        raise UserError("--root is not given: the folder of the data sets")
    data_set = DATASET_REGISTRY.get(cfg.DATASET.NAME)
    folders = {"--resume": cfg.RESUME, "--model-dir": args.model_dir}
    if not getattr(data_set, "written_on_first_use", False):
        folders["--root"] = cfg.DATASET.ROOT
    for flag, folder in folders.items():
        if folder and not Path(folder).expanduser().is_dir():
            what = "that of the data sets" if flag == "--root" else "the output folder of a run"
            raise UserError(f"{flag} {folder} is not a folder: give {what}")
    reads = training and issubclass(trainer, TwoStages)  # what plain hosts are given they let be
    descriptions = cfg.TRAINER.ANCHOROPT.DESCRIPTIONS if reads else ""
    if descriptions and not Path(descriptions).expanduser().is_file():
        raise UserError(f"TRAINER.ANCHOROPT.DESCRIPTIONS {descriptions} is not a file")
    if training:
        for folder in filter(None, (cfg.RESUME, cfg.OUTPUT_DIR)):
            check_same_run(cfg, folder)


def run(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Build the trainer, then train, test, or neither, as the flags say."""
    setup_logger(str(Path(cfg.OUTPUT_DIR, "log.txt")))
    if cfg.SEED >= 0:
        print(f"Setting fixed seed: {cfg.SEED}")
        set_random_seed(cfg.SEED)
    _print_box("Arguments")
    for name, value in sorted(vars(args).items()):
        print(f"{name}: {value}")
    _print_box("Config")
    print(cfg)
    print(f"** System info **\n{collect_env_info()}\n")

    try:
        trainer = build_trainer(cfg)
        if args.eval_only:
            trainer.load_model(args.model_dir, epoch=args.load_epoch)
    except UserError:
        withdraw_log()
        raise
    if args.eval_only:
        trainer.test()
    elif not args.no_train:
        write_record(cfg, cfg.OUTPUT_DIR, trainer.dm.dataset.classnames)
        trainer.train()


def _print_box(title: str) -> None:
    line = f"** {title} **"
    print("*" * len(line), line, "*" * len(line), sep="\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: see ``status_of``."""

    def command() -> None:
        args = build_parser().parse_args(argv)
        cfg = setup_cfg(args)
        check(cfg, args)
        with training_errors():
            run(cfg, args)
            distributed.stop()

    return status_of(
        command,
        room="make room there, or give another --output-dir",
        interrupted="interrupted; the same command goes on from the last checkpoint that "
        "TRAIN.CHECKPOINT_FREQ has saved, or from the start",
    )


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the command has one of its own
    sys.exit(main())

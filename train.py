r"""Train and test a prompt learner, with or without AnchorOPT. Flags are those of CoOp's train.py.

    python train.py --root data --trainer CoOp_AnchorOPT --seed 1 \
        --dataset-config-file configs/datasets/digits.yaml \
        --config-file configs/trainers/CoOp/tiny.yaml \
        --output-dir output/digits DATASET.NUM_SHOTS 16

The configuration is merged in this order, later values win: defaults, data set yaml, method yaml,
flags, KEY VALUE pairs. To resume an interrupted run, run the same command again.
"""

from __future__ import annotations

import argparse
import functools
import operator
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

if __name__ == "__main__":

    def _stop(number: int, _: object) -> NoReturn:
        """End the process at ctrl-C during the imports, which take seconds and catch exceptions."""
        print("interrupted", file=sys.stderr)
        os._exit(128 + number)

    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)

from yacs.config import CfgNode

import trainers  # noqa: F401  (registers the trainers)
from anchoropt_plugin import UserError, datasets  # before dassl: it makes `import dassl` work
from anchoropt_plugin.config.check import check_values
from anchoropt_plugin.config.merge import merge_file, merge_list
from anchoropt_plugin.config.reads import reads
from anchoropt_plugin.config.record import final_epoch, trained_among, write_record
from anchoropt_plugin.config.same_run import (
    check_same_classes,
    check_same_order,
    check_same_run,
)
from anchoropt_plugin.dassl_compat.finite_checks import training_errors
from anchoropt_plugin.dassl_compat.utils import (
    check_availability,
    collect_env_info,
    setup_logger,
    withdraw_log,
)
from anchoropt_plugin.dassl_compat.validation import check_validation
from anchoropt_plugin.datasets.splits import check_class_split
from anchoropt_plugin.files.training_images import (
    check_not_trained,
    check_same_images,
    digest,
    trained_marks,
    write_training_images,
)
from anchoropt_plugin.process import distributed
from anchoropt_plugin.process.command_line import Parser, status_of
from anchoropt_plugin.process.randomness import set_random_seed
from anchoropt_plugin.training.checks import (
    check_anchor_sources,
    check_anchoropt,
    check_trainer_name,
)
from anchoropt_plugin.training.trainer_registry import settings_in_force
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY, build_trainer
from trainers.config import extend_cfg
from trainers.unused_keys import UNUSED_KEYS, unread_keys, unused_keys

datasets.register()

_KEYS = {
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
"""The config key of each flag."""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = Parser(
        prog="train.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="train.py [FLAGS] [KEY VALUE ...]",
    )
    run = parser.add_argument_group("the run").add_argument
    names = ", ".join(sorted(TRAINER_REGISTRY.registered_names()))
    run("--trainer", metavar="NAME", help=f"one of {names}")
    run("--root", metavar="FOLDER", help="folder of the data sets; for ImageFolder, of the images")
    run("--dataset-config-file", metavar="FILE", help="yaml of the data set, see configs/datasets")
    run("--config-file", metavar="FILE", help="yaml of the method, see configs/trainers")
    run(
        "--output-dir",
        metavar="FOLDER",
        help="folder for log.txt, checkpoints and scalars (default: ./output)",
    )
    run("--seed", type=int, help="0 or more fixes all random numbers (default: -1, not fixed)")
    run(
        "--resume",
        metavar="FOLDER",
        help="output folder of the run to resume (default: --output-dir)",
    )
    run("--no-train", action="store_true", help="build the trainer, then stop")
    test = parser.add_argument_group("test of a trained model").add_argument
    test("--eval-only", action="store_true", help="test, do not train")
    test("--model-dir", metavar="FOLDER", default="", help="output folder of the trained model")
    test(
        "--load-epoch",
        metavar="EPOCH",
        type=int,
        help="epoch of the checkpoint; -1: the last (default: the one that the run itself tests: "
        "the last, or with TEST.FINAL_MODEL best_val the best on validation images)",
    )
    other = parser.add_argument_group("short names of config keys").add_argument
    other("--backbone", metavar="NAME", help="sets MODEL.BACKBONE.NAME")
    other("--head", metavar="NAME", help="sets MODEL.HEAD.NAME")
    other("--transforms", nargs="+", metavar="NAME", help="sets INPUT.TRANSFORMS")
    other("--source-domains", nargs="+", metavar="NAME", help="sets DATASET.SOURCE_DOMAINS")
    other("--target-domains", nargs="+", metavar="NAME", help="sets DATASET.TARGET_DOMAINS")
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help="config keys and values, after all flags: OPTIM.LR 0.01 DATASET.NUM_SHOTS 4",
    )
    return parser


def setup_cfg(args: argparse.Namespace) -> CfgNode:
    """Return the frozen configuration of a command line.

    Raises:
        UserError: an unknown key, an unreadable file, or a value of the wrong type.
    """
    check_trainer_name(args.trainer or "", TRAINER_REGISTRY.registered_names())
    late = [word for word in args.opts if word.startswith("--")]
    if late:
        raise UserError(f"flags come before KEY VALUE pairs: move {late[0]} to the front")
    for flag in ("transforms", "source_domains", "target_domains"):
        keys = [word for word in getattr(args, flag) or () if re.match(r"[A-Z0-9_]+\.", word)]
        if keys:
            name = f"--{flag.replace('_', '-')}"
            raise UserError(
                f"{name} takes all words after it, also {keys[0]}: move it to the front"
            )
    cfg = get_cfg_default()
    extend_cfg(cfg)
    for path in (args.dataset_config_file, args.config_file):
        if path:
            merge_file(cfg, path, UNUSED_KEYS)
    for flag, key in _KEYS.items():
        value = getattr(args, flag)
        if value is not None:
            *sections, name = key.split(".")
            functools.reduce(operator.getitem, sections, cfg)[name] = value
    merge_list(cfg, args.opts, UNUSED_KEYS)
    for name in ("OUTPUT_DIR", "RESUME"):  # from a yaml file; the parser replaces ~ in words
        cfg[name] = os.path.expanduser(cfg[name])  # noqa: PTH111
    settings = cfg.TRAINER.ANCHOROPT
    given = Path(settings.DESCRIPTIONS).expanduser()
    beside = Path(__file__).resolve().parent / settings.DESCRIPTIONS
    if settings.DESCRIPTIONS and not given.exists() and beside.exists():
        # The yaml files of data sets name files of this repository, for any working directory.
        settings.DESCRIPTIONS = str(beside)
    cfg = settings_in_force(cfg)
    cfg.freeze()
    return cfg


def check(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Check the command line and the configuration, before anything is written.

    Raises:
        UserError: an invalid value, an unknown name, a missing folder, or the output folder of
            another run.
    """
    str(cfg).encode()  # a path that cannot be encoded ends the run here, not halfway
    training = not (args.eval_only or args.no_train)
    if training and args.model_dir:
        raise UserError(
            "--model-dir has no effect on a training: add --eval-only to test that run, or give "
            "MODEL.INIT_WEIGHTS, a checkpoint, to train on from its weights"
        )
    if args.eval_only and not args.model_dir and any(Path(cfg.OUTPUT_DIR).glob("*/checkpoint")):
        raise UserError(
            f"{cfg.OUTPUT_DIR} holds a training: add --model-dir {cfg.OUTPUT_DIR} to test it, or "
            "test an untrained prompt in another --output-dir"
        )
    check_values(cfg, training)
    check_trainer_name(cfg.TRAINER.NAME, TRAINER_REGISTRY.registered_names())
    check_availability(cfg.TRAINER.NAME, TRAINER_REGISTRY.registered_names(), "--trainer")
    check_availability(cfg.DATASET.NAME, DATASET_REGISTRY.registered_names(), "DATASET.NAME")
    check_anchoropt(cfg, TRAINER_REGISTRY.get(cfg.TRAINER.NAME), training)
    if not cfg.DATASET.ROOT:
        raise UserError("--root is not given: give the folder of the data sets")
    data_set = DATASET_REGISTRY.get(cfg.DATASET.NAME)
    check_class_split(cfg.DATASET.CLASS_SPLIT, data_set)
    folders = {"--resume": cfg.RESUME, "--model-dir": args.model_dir}
    if not getattr(data_set, "written_on_first_use", False):
        folders["--root"] = cfg.DATASET.ROOT
    for flag, folder in folders.items():
        if folder and not Path(folder).expanduser().is_dir():
            what = "folder of the data sets" if flag == "--root" else "output folder of a run"
            raise UserError(f"{flag} {folder} is not a folder: give the {what}")
    if args.model_dir and not any(Path(args.model_dir).expanduser().glob("*/model*")):
        raise UserError(
            f"--model-dir {args.model_dir} holds no model: give the output folder of a training"
        )
    if training:
        if cfg.RESUME and not any(Path(cfg.RESUME).glob("*/checkpoint")):
            raise UserError(f"--resume {cfg.RESUME} holds no checkpoint: give the folder of a run")
        for folder in filter(None, (cfg.RESUME, cfg.OUTPUT_DIR)):
            check_same_run(cfg, folder)


def run(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Build the trainer; then train it, test it or stop, as the flags say."""
    setup_logger(str(Path(cfg.OUTPUT_DIR, "log.txt")))
    if cfg.SEED >= 0:
        print(f"Setting fixed seed: {cfg.SEED}")
        set_random_seed(cfg.SEED)
    _print_box("Arguments")
    for name, value in sorted(vars(args).items()):
        print(f"{name}: {value}")
    _print_box("Config")
    print(cfg)
    words = args.opts[::2]
    unused = unused_keys(cfg, args.dataset_config_file, args.config_file, words)
    if unused:
        print(f"Note: keys of other trainers, without effect: {', '.join(unused)}")
    print(f"** System info **\n{collect_env_info()}\n")

    try:
        with reads(cfg) as read:
            trainer = build_trainer(cfg)
        of_flags = [key for flag, key in _KEYS.items() if getattr(args, flag) is not None]
        unread = unread_keys([*words, *of_flags], read)
        if unread:
            print(f"Note: keys that no part of this run reads, without effect: {', '.join(unread)}")
        if args.eval_only:
            if args.model_dir and not trainer.get_model_names():
                raise UserError(
                    f"--model-dir has no effect on {cfg.TRAINER.NAME}, which is not trained: leave "
                    "it out, or give the --trainer of the run"
                )
            epoch = args.load_epoch
            if args.model_dir and epoch is None:
                epoch = final_epoch(args.model_dir, next(iter(trainer.get_model_names()), ""))
            trainer.load_model(args.model_dir, epoch=epoch)
            if args.model_dir:
                check_not_trained(args.model_dir, trainer.dm.dataset, cfg.TEST.SPLIT)
                names = trainer.dm.dataset.classnames
                check_same_order(cfg, args.model_dir, names)
                trained = trained_among(args.model_dir, names)
                if cfg.DATASET.SUBSAMPLE_CLASSES == "new" and trained:
                    print(f"Note: {trained} of these {len(names)} new classes were trained")
        elif not args.no_train:
            check_validation(trainer)
            check_anchor_sources(trainer)
            images = digest(trainer.dm.dataset.train_x)
            for folder in filter(None, (cfg.RESUME, cfg.OUTPUT_DIR)):
                check_same_classes(folder, trainer.dm.dataset.classnames)
                if cfg.SEED >= 0:  # without a seed, each start draws few-shot images of its own
                    check_same_images(folder, images)
    except (UserError, UnicodeEncodeError):
        withdraw_log()
        raise
    if args.eval_only:
        trainer.test()
    elif not args.no_train:
        write_record(cfg, cfg.OUTPUT_DIR, trainer.dm.dataset.classnames)
        write_training_images(cfg.OUTPUT_DIR, images, trained_marks(trainer.dm.dataset))
        trainer.train()


def _print_box(title: str) -> None:
    line = f"** {title} **"
    print("*" * len(line), line, "*" * len(line), sep="\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit status of ``status_of``."""

    def command() -> None:
        args = build_parser().parse_args(argv)
        cfg = setup_cfg(args)
        check(cfg, args)
        with training_errors():
            run(cfg, args)
            distributed.stop()

    return status_of(
        command,
        room="give another --output-dir",
        interrupted="interrupted; the same command resumes from the last checkpoint (see "
        "TRAIN.CHECKPOINT_FREQ), or starts again if there is none",
    )


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # status_of has its own handler
    distributed.leave(main())

"""Build a host trainer on a random CLIP and random images, plain and with AnchorOPT."""

from __future__ import annotations

import argparse
import contextlib
import gc
import inspect
import io
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from PIL import Image
from torch import nn
from yacs.config import CfgNode

from ...config.merge import merge_file, merge_list, merge_or_add, read_yaml
from ...errors import UserError, nearest
from ...files.readers import read_text
from ...process.gradients import trained_parameters
from ...process.user_code import error_in_one_line, import_user_module
from ...prompts.hooks import is_prompt_learner
from ...training.decorators import anchoropt
from ...training.settings import extend_cfg
from ...training.two_stages import SUFFIX, TwoStages

Keys = Callable[[Any], None]

_KEYS_BY_HAND = "let it use nothing but cfg, or try the trainer with `run`"

PUBLIC_KEYS = Path(__file__).parents[2] / "assets" / "trainer_keys.yaml"
CLASSES = ["face", "leopard", "accordion", "airplane", "anchor", "ceiling_fan", "barrel", "bonsai"]
OTHER_CLASSES = ["joshua_tree", "lotus", "sea_horse", "windsor_chair", "yin_yang"]
"""Of Caltech101: hosts look up descriptions by data set and class name."""
BATCH = 4

SMALL: dict[str, Any] = {
    "DATASET": {
        "NAME": "Caltech101",  # hosts look up templates by data set name
        "SUBSAMPLE_CLASSES": "base",  # the trained classes: some hosts test "new" differently
    },
    "MODEL": {"BACKBONE": {"NAME": "ViT-B/32"}},
    "INPUT": {
        "SIZE": (224, 224),
        "INTERPOLATION": "bicubic",
        "TRANSFORMS": ("random_resized_crop", "random_flip", "normalize"),
    },
    "OPTIM": {"NAME": "sgd", "LR": 0.002, "MAX_EPOCH": 1},
    "DATALOADER": {"NUM_WORKERS": 0},
    "TRAINER": {"ANCHOROPT": {"ANCHOR_EPOCHS": 1}},
    "VERBOSE": False,
}
"""The values of a trial; a config file and KEY VALUE pairs override them."""


def find_trainer(spec: str, learner: str) -> tuple[type, type]:
    """Return the trainer ``module:Trainer``, and the same trainer with AnchorOPT.

    Args:
        spec: a module of the working directory, and a class in it or a name it registers.
        learner: attribute name of the prompt learner, for trainers without the decorator.

    Raises:
        UserError: an unknown module or trainer.
    """
    from dassl.engine import TRAINER_REGISTRY

    module_name, _, name = spec.partition(":")
    if not (module_name and name):
        raise UserError(f"{spec!r} is not of the form module:Trainer, such as trainers.coop:CoOp")
    module = import_user_module(module_name.removesuffix(".py").replace("/", "."))
    registered = {
        other: TRAINER_REGISTRY.get(other) for other in TRAINER_REGISTRY.registered_names()
    }
    host = getattr(module, name, registered.get(name))
    if not isinstance(host, type) or not hasattr(host, "build_model"):
        own = [other for other, cls in registered.items() if cls.__module__ == module.__name__]
        raise UserError(
            f"{module_name} has no trainer {name!r}{nearest(name, own)}; "
            f"it registers {', '.join(sorted(own)) or 'no trainer'}"
        )
    if issubclass(host, TwoStages):
        return host.anchoropt_host, host
    for other in registered.values():
        if issubclass(other, TwoStages) and other.anchoropt_host is host:
            return host, other
    name = f"{host.__name__}{SUFFIX}"
    if name in registered:  # a class of the repository itself
        name += "_trial"
    anchoropt(host, name=name, learner=learner)
    return host, TRAINER_REGISTRY.get(name)


def own_keys() -> Keys | None:
    """Return a function that adds the keys of the working directory's train.py.

    These are the keys of its ``get_cfg_default``, which may be another than Dassl's, and those of
    its ``extend_cfg``. A train.py without an ``extend_cfg`` is not imported: it might start a
    training. If the function reads flags of the command line, from an argument or from ``args``,
    each flag is None.

    Raises:
        UserError: a train.py whose import fails.
    """
    path = Path("train.py")
    if not path.is_file() or not re.search(r"^def extend_cfg\b", read_text(path), re.MULTILINE):
        return None
    try:
        script = import_user_module("train")
    except SystemExit as error:
        raise UserError(
            f"importing train.py for its extend_cfg fails ({error_in_one_line(error)}): move the "
            'code that runs it under `if __name__ == "__main__"`'
        ) from error
    flags = _NoFlags()
    vars(script).setdefault("args", flags)
    given = inspect.signature(script.extend_cfg).parameters.values()
    needed = [x for x in given if x.kind <= x.POSITIONAL_OR_KEYWORD and x.default is x.empty]

    def add(cfg: Any) -> None:
        merge_or_add(cfg, getattr(script, "get_cfg_default", dict)(), "get_cfg_default of train.py")
        script.extend_cfg(cfg, *[flags for _ in needed[1:]])

    return add


class _NoFlags(argparse.Namespace):
    """The flags of a train.py, none of them given."""

    def __getattr__(self, name: str) -> None:
        return None


def trial_cfg(
    trainer: type,
    keys: Keys | None,
    folder: Path,
    config_file: str | None,
    opts: Sequence[str],
    precision: str | None = None,
) -> Any:
    """Return the configuration of a trial: small, with the host's own keys.

    Args:
        trainer: the host trainer.
        keys: a function that adds the host's keys; None adds the keys of public trainers.
        folder: the folder for outputs.
        config_file: yaml file of the method.
        opts: KEY VALUE pairs; unknown keys are added.
        precision: a value that replaces the default of ``PREC``.

    Raises:
        UserError: a wrong file or key.
    """
    from dassl.config import get_cfg_default

    cfg = get_cfg_default()
    if keys is None:
        merge_or_add(cfg, read_yaml(PUBLIC_KEYS), str(PUBLIC_KEYS))
    else:
        with host_errors("extend_cfg of train.py fails: ", _KEYS_BY_HAND):
            keys(cfg)
    extend_cfg(cfg)
    merge_or_add(cfg, SMALL, "the trial")
    cfg.TRAINER.NAME, cfg.OUTPUT_DIR = trainer.__name__, str(folder)
    cfg.TRAINER.ANCHOROPT.ANCHOR_CACHE = str(folder / "anchors")
    for section in (cfg.TRAINER, *cfg.TRAINER.values()):
        if precision and isinstance(section, CfgNode) and "PREC" in section:
            section.PREC = precision
    if config_file:
        merge_file(cfg, config_file)
    for key in opts[::2]:
        if not key.startswith("TRAINER.ANCHOROPT.") and _make_room(cfg, key):
            print(f"{key}: a new key, as a train.py adds by flags of its own")
    merge_list(cfg, opts)
    cfg.DATALOADER.TRAIN_X.BATCH_SIZE = cfg.DATALOADER.TEST.BATCH_SIZE = BATCH
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.freeze()
    return cfg


def _make_room(cfg: CfgNode, full_key: str) -> bool:
    """Add a key of any type to ``cfg``; return whether the key was missing."""
    *sections, name = full_key.split(".")
    for section in sections:
        cfg = cfg.setdefault(section, CfgNode())
    is_missing = name not in cfg
    cfg.setdefault(name, None)
    return is_missing


def _data_set(class_names: Sequence[str], folder: Path) -> type:
    """Return a data set class of random images: one of each class, and at least ``BATCH``.

    Args:
        class_names: C class names, in the order of their labels.
        folder: where the images are written.
    """
    from dassl.data.datasets import DatasetBase, Datum

    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    items = []
    for label, name in enumerate(class_names):
        path = folder / f"{label}.png"
        pixels = torch.randint(0, 256, (64, 64, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(path)
        items.append(Datum(impath=str(path), label=label, classname=name))

    class RandomImages(DatasetBase):
        dataset_dir = str(folder)

        def __init__(self, cfg: Any) -> None:
            self.image_dir, self.all_class_names = str(folder), list(class_names)
            several = [*items, *items * BATCH]
            n_train = max(len(items), BATCH)
            super().__init__(several[:n_train], val=several[:BATCH], test=several[:BATCH])

    return RandomImages


def build(trainer: type, cfg: Any, classes: Sequence[str]) -> Any:
    """Build a trainer with its own loaders on random images of ``classes``; drop its output."""
    from dassl.data.datasets import DATASET_REGISTRY

    gc.collect()  # a trainer that nobody needs now is a cycle, and holds a whole CLIP
    torch.manual_seed(0)
    data_set = _data_set(classes, Path(cfg.OUTPUT_DIR, "images"))
    registered = {cfg.DATASET.NAME: data_set}
    with quiet(), mock.patch.dict(DATASET_REGISTRY._obj_map, registered):
        return trainer(cfg)


def take_step(trainer: Any) -> None:
    """Train an epoch of one batch."""
    with quiet():
        trainer.set_model_mode("train")
        trainer.epoch, trainer.batch_idx, trainer.num_batches = 0, 0, 1
        trainer.time_start = time.time()  # as by before_train: an after_epoch may print durations
        trainer.before_epoch()
        trainer.forward_backward(next(iter(trainer.train_loader_x)))
        trainer.after_epoch()


def logits_at_test(trainer: Any) -> Any:
    """Return what the trainer gives its evaluator in a test, or None if it gives nothing."""
    given: list[Any] = []
    recording = mock.patch.multiple(
        trainer.evaluator,
        process=lambda output, *labels: given.append(output),
        evaluate=lambda: {"accuracy": 0.0},
    )
    with quiet(), torch.no_grad(), recording:
        trainer.test()
    return given[0] if given else None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drop the output of a host."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


class HostError(UserError):
    """An exception in a host's code, with file and line."""


@contextlib.contextmanager
def host_errors(what: str, remedy: str) -> Iterator[None]:
    """Turn an exception in the host's code into a ``HostError`` of one line.

    Args:
        what: the start of the message.
        remedy: the end of the message, with the advice.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # the host's code may raise anything
        raise HostError(f"{what}{error_in_one_line(error)}; {remedy}") from error


def modules_of(trainer: Any) -> dict[str, nn.Module]:
    """Return all modules of a trainer by dotted name."""
    return {
        ".".join(filter(None, (attribute, name))): module
        for attribute, value in vars(trainer).items()
        if isinstance(value, nn.Module)
        for name, module in value.named_modules()
    }


def trained_by(trainer: Any) -> dict[str, nn.Parameter]:
    """Return the parameters that an optimiser holds and a gradient reached, by model and name.

    Parameters without a gradient, such as prompts of a block that the small CLIP lacks, are
    skipped.
    """
    optimized = {id(parameter) for parameter in trained_parameters(trainer._optims.values())}
    return {
        f"{model}.{name}": parameter
        for model, module in trainer._models.items()
        for name, parameter in module.named_parameters()
        if id(parameter) in optimized and parameter.grad is not None
    }


def learners_of(trainer: Any) -> dict[str, nn.Module]:
    """Return all prompt learners of a trainer by dotted name."""
    return {
        name: module for name, module in modules_of(trainer).items() if is_prompt_learner(module)
    }

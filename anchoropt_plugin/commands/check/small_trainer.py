"""Build a host trainer on the random CLIP and generated pictures, alone and with AnchorOPT."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from yacs.config import CfgNode

from ...config.merge import merge_file, merge_list, read_yaml
from ...errors import UserError, nearest
from ...files.readers import read_text
from ...process.user_code import error_in_one_line, import_user_module
from ...prompts.hooks import is_prompt_learner
from ...training.decorators import anchoropt
from ...training.settings import extend_cfg
from ...training.two_stages import SUFFIX, TwoStages
from ...training.without_data import without_data

Keys = Callable[[Any], None]

PUBLIC_KEYS = Path(__file__).parents[2] / "assets" / "trainer_keys.yaml"
CLASSES = ["cat", "red fox", "bus", "sea or lake", "lamp", "hot air balloon", "tree", "bicycle"]
BATCH = 4

SMALL = {
    "DATASET.NAME": "Caltech101",  # hosts look up templates by it
    "DATASET.SUBSAMPLE_CLASSES": "base",  # what is trained on: hosts test new classes otherwise
    "MODEL.BACKBONE.NAME": "ViT-B/16",
    "INPUT.SIZE": (224, 224),
    "OPTIM.NAME": "sgd",
    "OPTIM.LR": 0.002,
    "OPTIM.MAX_EPOCH": 1,
    "DATALOADER.NUM_WORKERS": 0,
    "TRAINER.ANCHOROPT.ANCHOR_EPOCHS": 1,
    "VERBOSE": False,
}
"""What a trial sets where neither a file nor KEY VALUE does."""


def find_trainer(spec: str, learner: str) -> tuple[type, type]:
    """The trainer that ``module:Trainer`` names, and the same with AnchorOPT.

    Args:
        spec: a module of the working directory, and a class in it or a name that it registers.
        learner: under which name its model holds the prompt learner, where it is not decorated.

    Raises:
        UserError: there is no such module or trainer.
    """
    from dassl.engine import TRAINER_REGISTRY

    module_name, _, name = spec.partition(":")
    if not (module_name and name):
        raise UserError(f"{spec!r} is no module:Trainer, as in trainers.coop:CoOp")
    module = import_user_module(module_name.removesuffix(".py").replace("/", "."))
    registered = {
        other: TRAINER_REGISTRY.get(other) for other in TRAINER_REGISTRY.registered_names()
    }
    host = getattr(module, name, registered.get(name))
    if not isinstance(host, type) or not hasattr(host, "build_model"):
        own = [other for other, cls in registered.items() if cls.__module__ == module.__name__]
        raise UserError(
            f"{module_name} has no trainer {name!r}{nearest(name, own)}; "
            f"it registers {', '.join(sorted(own)) or 'none'}"
        )
    if issubclass(host, TwoStages):
        return host.anchoropt_host, host
    for other in registered.values():
        if issubclass(other, TwoStages) and other.anchoropt_host is host:
            return host, other
    name = f"{host.__name__}{SUFFIX}"
    if name in registered:  # the host's own
        name += "_trial"
    anchoropt(host, name=name, learner=learner)
    return host, TRAINER_REGISTRY.get(name)


def own_keys() -> Keys | None:
    """The ``extend_cfg`` of a train.py in the working directory, which adds the host's keys.

    A train.py without one is not imported, as it may start a training.

    Raises:
        UserError: importing it fails.
    """
    path = Path("train.py")
    if not path.is_file() or not re.search(r"^def extend_cfg\b", read_text(path), re.MULTILINE):
        return None
    try:
        keys: Keys = import_user_module("train").extend_cfg
    except SystemExit as error:
        raise UserError(
            f"importing train.py for its extend_cfg fails ({error_in_one_line(error)}): see that "
            'what it does stands under `if __name__ == "__main__"`'
        ) from error
    return keys


def trial_cfg(
    trainer: type,
    keys: Keys | None,
    folder: Path,
    config_file: str | None,
    opts: Sequence[str],
    precision: str | None = None,
) -> Any:
    """The configuration of a trial: small, with the host's own keys.

    Args:
        trainer: the host.
        keys: adds its keys; without it they are those of public trainers and whatever ``opts`` has.
        folder: for what is written.
        config_file: yaml of the method.
        opts: KEY VALUE pairs.
        precision: in place of the default of ``PREC``.

    Raises:
        UserError: a file or key that is wrong.
    """
    from dassl.config import get_cfg_default

    cfg = get_cfg_default()
    if keys is None:
        _add(cfg, read_yaml(PUBLIC_KEYS))
        for key in opts[::2]:
            _make_room(cfg, key)
    else:
        with host_errors(
            "extend_cfg of train.py fails: ",
            "see that it needs cfg alone, or try the trainer with `run`",
        ):
            keys(cfg)
    extend_cfg(cfg)
    small = {**SMALL, "TRAINER.NAME": trainer.__name__, "OUTPUT_DIR": str(folder)}
    small["TRAINER.ANCHOROPT.ANCHOR_CACHE"] = str(folder / "anchors")
    for key, value in small.items():
        section, _, name = key.rpartition(".")
        node = cfg
        for part in filter(None, section.split(".")):
            node = node[part]
        if name in node or section != "TRAINER.ANCHOROPT":
            node[name] = value
    for section in cfg.TRAINER.values():
        if precision and isinstance(section, CfgNode) and "PREC" in section:
            section.PREC = precision
    if config_file:
        merge_file(cfg, config_file)
    merge_list(cfg, opts)
    cfg.freeze()
    return cfg


def _add(cfg: CfgNode, values: dict[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, dict):
            if key not in cfg:
                cfg[key] = CfgNode()
            _add(cfg[key], value)
        else:
            cfg[key] = value


def _make_room(cfg: CfgNode, full_key: str) -> None:
    """Give ``cfg`` a key without a type, if it has none of that name."""
    *sections, name = full_key.split(".")
    for section in sections:
        if section not in cfg:
            cfg[section] = CfgNode()
        cfg = cfg[section]
    if name not in cfg:
        cfg[name] = None


def generated_batch(cfg: Any) -> dict[str, Any]:
    """A batch of random pictures as Dassl's loaders give them."""
    generator = torch.Generator().manual_seed(0)
    size = tuple(cfg.INPUT.SIZE)
    return {
        "img": torch.randn(BATCH, 3, *size, generator=generator),
        "label": torch.arange(BATCH) % len(CLASSES),
        "domain": torch.zeros(BATCH, dtype=torch.long),
        "impath": [f"{i}.jpg" for i in range(BATCH)],
        "index": torch.arange(BATCH),
    }


def build(trainer: type, cfg: Any, classes: Sequence[str] = CLASSES) -> Any:
    """Build a trainer of the generated data; what it prints is dropped."""
    torch.manual_seed(0)
    with quiet():
        return without_data(trainer, classes, [generated_batch(cfg)])(cfg)


def take_step(trainer: Any) -> None:
    """A step of training on the generated batch, the last of its epoch."""
    with quiet():
        trainer.set_model_mode("train")
        trainer.epoch, trainer.batch_idx, trainer.num_batches = 0, 0, 1
        trainer.before_epoch()
        trainer.forward_backward(trainer.train_loader_x[0])


def tested(trainer: Any) -> Any:
    """What the trainer gives its evaluator for the generated batch at test, or None."""
    given: list[Any] = []
    process = trainer.evaluator.process
    trainer.evaluator.process = lambda output, *labels: given.append(output)
    trainer.evaluator.evaluate = lambda: {"accuracy": 0.0}
    try:
        with quiet(), torch.no_grad():
            trainer.test()
    finally:
        trainer.evaluator.process = process
        del trainer.evaluator.evaluate
    return given[0] if given else None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drop what a host prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


class HostError(UserError):
    """An exception in the code of a host, with its place."""


@contextlib.contextmanager
def host_errors(what: str, remedy: str) -> Iterator[None]:
    """Exceptions of the host's code become one line with their place."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # whatever somebody else's code raises
        raise HostError(f"{what}{error_in_one_line(error)}; {remedy}") from error


def modules_of(trainer: Any) -> dict[str, nn.Module]:
    """All modules that a trainer holds, by their dotted names in it."""
    return {
        ".".join(filter(None, (attribute, name))): module
        for attribute, value in vars(trainer).items()
        if isinstance(value, nn.Module)
        for name, module in value.named_modules()
    }


def trained_by(trainer: Any) -> dict[str, nn.Parameter]:
    """What the optimisers hold and a gradient reached, by its model and name in it.

    A parameter without a gradient, such as one of a block that the small CLIP lacks, is left out.
    """
    held = {
        id(parameter)
        for optimizer in trainer._optims.values()
        if optimizer is not None
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    named = (
        (f"{name}.{own}", parameter)
        for name, model in trainer._models.items()
        for own, parameter in model.named_parameters()
    )
    return {
        name: parameter
        for name, parameter in named
        if id(parameter) in held and parameter.grad is not None
    }


def learners_of(trainer: Any) -> dict[str, nn.Module]:
    """The prompt learners among them."""
    return {
        name: module for name, module in modules_of(trainer).items() if is_prompt_learner(module)
    }

"""What a repository is to an experiment: its folder, its files, its trainers and its train.py."""

from __future__ import annotations

import importlib
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from ..config.check import flattened
from ..errors import UserError, nearest
from ..training.settings import AnchorOPTConfig
from ..training.two_stages import SUFFIX, TwoStages
from .files import find


@dataclass(frozen=True)
class Checkout:
    """A checkout of anchoropt-plugin, whose ``train.py`` is imported.

    Attributes:
        folder: the folder with ``train.py``.
    """

    folder: Path

    preload = ("train",)
    """The modules that the fork server imports before it forks the processes of runs."""

    @property
    def configs(self) -> Path:
        """Return the folder of the yaml files."""
        return self.folder / "configs"

    def trainer_config(self, host: str, name: str) -> Path:
        """Return the file ``name`` of a host's folder in ``configs/trainers``.

        Raises:
            UserError: there is no such host or no such file. A host is a trainer that
                ``@anchoropt`` has wrapped.
        """
        names = self._registry().registered_names()
        hosts = [name for name in names if name + SUFFIX in names]
        if host not in hosts:
            raise UserError(
                f"unknown host {host!r}{nearest(host, hosts)}: choose from {', '.join(hosts)}"
            )
        return find(self.configs / "trainers" / host, name, f"config of {host}")

    def dataset_config(self, name: str) -> Path:
        """Return the file of a data set in ``configs/datasets``.

        Raises:
            UserError: there is no such file.
        """
        return find(self.configs / "datasets", name, "data set")

    def cfg(self, words: Sequence[str]) -> CfgNode:
        """Return the configuration of a command line of ``train.py``.

        Raises:
            UserError: the command line is invalid.
        """
        return self.train.setup_cfg(self.parse(words))

    def parse(self, words: Sequence[str]) -> Namespace:
        """Return the arguments of a command line of ``train.py``."""
        return self.train.build_parser().parse_args(list(words))

    def check(self, cfg: CfgNode, folder: Path, training: bool) -> None:
        """Check a run with the output folder ``folder``, before any run is started.

        Raises:
            UserError: ``train.py`` would refuse the run.
        """
        cfg.defrost()
        cfg.OUTPUT_DIR = str(folder)
        cfg.freeze()
        self.train.check(cfg, Namespace(eval_only=not training, no_train=False, model_dir=""))
        if self.is_two_stages(cfg.TRAINER.NAME):
            AnchorOPTConfig.from_cfg(cfg, host=cfg.TRAINER.NAME.removesuffix(SUFFIX))

    def is_two_stages(self, trainer: str) -> bool:
        """Tell whether a trainer has AnchorOPT."""
        return issubclass(self._registry().get(trainer), TwoStages)

    def node(self, trainer: str) -> str:
        """Return the name of a trainer's section in ``TRAINER``; empty if it has none."""
        return getattr(self._registry().get(trainer), "node", "")

    def defaults(self) -> Mapping[str, Any]:
        """Return all keys and their default values."""
        return dict(flattened(self.cfg([])))

    def build(self, cfg: CfgNode) -> Any:
        """Return the trainer of a configuration."""
        self._registry()
        return importlib.import_module("dassl.engine").build_trainer(cfg)

    def main(self, words: Sequence[str]) -> int:
        """Run ``train.py`` in this process, and return its exit status."""
        return self.train.main(list(words))

    @property
    def train(self) -> Any:
        """Return the module ``train``.

        Raises:
            UserError: there is no checkout.
        """
        return _train(self.folder)

    def _registry(self) -> Any:
        _train(self.folder)  # registers the trainers
        return importlib.import_module("dassl.engine").TRAINER_REGISTRY


@cache
def _train(folder: Path) -> Any:
    if not (folder / "train.py").is_file() or not (folder / "trainers").is_dir():
        raise UserError(
            "this is the installed package, without the trainers of its repository: start from a "
            "checkout of anchoropt-plugin"
        )
    if importlib.import_module("dassl.engine").TrainerX.__module__.startswith("dassl."):
        # Else `dassl` is anchoropt_plugin.dassl_compat.
        raise UserError(
            "experiments read results.json, which the installed Dassl does not write: pip "
            "uninstall dassl (anchoropt_plugin has its own runtime), or use another environment"
        )
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    return importlib.import_module("train")


CHECKOUT = Checkout(Path(__file__).resolve().parents[2])
"""The checkout that this package is part of, if there is one."""

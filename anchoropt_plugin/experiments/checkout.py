"""The checkout of anchoropt-plugin, whose train.py is imported."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from ..config.check import as_in_yaml, flattened
from ..config.record import RECORD
from ..config.same_run import FREE
from ..errors import UserError, nearest
from ..files.atomic import write_text
from ..files.run_events import RESULTS, read_results
from ..training.two_stages import SUFFIX, TwoStages
from .files import find
from .repository import Repository, Value


@dataclass(frozen=True)
class Checkout(Repository):
    """A checkout of anchoropt-plugin.

    Its configuration files have names; a host is a trainer that ``@anchoropt`` has wrapped.
    """

    folder: Path

    preload = ("train",)
    has_zero_shot = True

    @property
    def configs(self) -> Path:
        """Return the folder of the yaml files."""
        return self.folder / "configs"

    def trainer_config(self, host: str, name: str) -> Path:
        names = self._registry().registered_names()
        hosts = [name for name in names if name + SUFFIX in names]
        if host not in hosts:
            raise UserError(
                f"unknown host {host!r}{nearest(host, hosts)}: choose from {', '.join(hosts)}, or "
                "give the folder of its train.py (--repository)"
            )
        return find(self.configs / "trainers" / host, name, f"config of {host}")

    def dataset_config(self, name: str) -> Path:
        return find(self.configs / "datasets", name, "data set")

    def settings(self, words: Sequence[str], pairs: Sequence[str]) -> dict[str, Any]:
        cfg = self.cfg([*words, *pairs])
        return {key: as_in_yaml(value) for key, value in flattened(cfg)}

    def node(self, trainer: str) -> str:
        return getattr(self._registry().get(trainer), "node", "")

    def is_two_stages(self, trainer: str) -> bool:
        return issubclass(self._registry().get(trainer), TwoStages)

    def check(self, argv: Sequence[str], folder: Path) -> None:
        cfg, training = self.cfg(argv), "--eval-only" not in argv
        # The model of a test will be there once it is trained.
        self.train.check(cfg, Namespace(eval_only=not training, no_train=False, model_dir=""))

    def run(self, argv: Sequence[str], folder: Path) -> int:
        record, training = folder / RECORD, "--eval-only" not in argv
        if not training:  # the record of an earlier test may have other settings
            with contextlib.suppress(OSError):
                record.unlink()
        status: int = self.train.main(list(argv))
        if not status and not training:  # train.py writes the record of a training only
            write_text(record, self.cfg(argv).dump())
        return status

    def is_recorded(self, argv: Sequence[str], folder: Path, settings: Mapping[str, Any]) -> bool:
        path = folder / RECORD
        try:
            recorded = _recorded(self, path, path.stat().st_mtime_ns)
        except (OSError, ValueError, yaml.YAMLError):
            return False
        return recorded == _digest(self, settings)

    def results(self, folder: Path, training: bool) -> tuple[dict[str, Any], Path] | None:
        results = read_results(folder)
        if not results or results["after_training"] != training:
            return None
        return results, folder / RESULTS

    def with_trainer(self, argv: Sequence[str], use: Callable[[Any], Value]) -> Value:
        with tempfile.TemporaryDirectory() as folder:
            cfg = self.cfg(argv)
            cfg.defrost()
            cfg.OUTPUT_DIR = folder
            cfg.freeze()
            return use(self.build(cfg))

    def build(self, cfg: CfgNode) -> Any:
        """Return the trainer of a configuration."""
        self._registry()
        return importlib.import_module("dassl.engine").build_trainer(cfg)

    def cfg(self, words: Sequence[str]) -> CfgNode:
        """Return the configuration of a command line of ``train.py``.

        Raises:
            UserError: the command line is invalid.
        """
        return self.train.setup_cfg(self.parse(words))

    def parse(self, words: Sequence[str]) -> Namespace:
        """Return the arguments of a command line of ``train.py``."""
        return self.train.build_parser().parse_args(list(words))

    @property
    def train(self) -> Any:
        """Return the module ``train``.

        Raises:
            UserError: there is no checkout, or Dassl is installed.
        """
        return _train(self.folder)

    def _registry(self) -> Any:
        _train(self.folder)  # registers the trainers
        return importlib.import_module("dassl.engine").TRAINER_REGISTRY


@cache
def _train(folder: Path) -> Any:
    if not (folder / "train.py").is_file() or not (folder / "trainers").is_dir():
        raise UserError(
            "the installed package has no trainers of its own: give --repository, the folder of "
            "the repository with your train.py"
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


@lru_cache(maxsize=100_000)
def _recorded(checkout: Checkout, path: Path, changed: int) -> str:
    """Return the digest of a config.yaml; the cache reads a file again after it ``changed``."""
    # The C loader, if there is one: experiments read thousands of these files several times.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(path.read_text(encoding="utf-8"))
    try:
        recorded = loader.get_single_data()
    finally:
        loader.dispose()
    return _digest(checkout, dict(flattened(recorded))) if isinstance(recorded, dict) else ""


def _digest(checkout: Checkout, settings: Mapping[str, Any]) -> str:
    """Return a short text of the settings that must not change when a run is resumed.

    Defaults are left out: the record of an earlier version lacks keys that are new.
    """
    defaults = _defaults(checkout)
    binding = sorted(
        (key, repr(value))
        for key, value in settings.items()
        if key not in FREE and repr(value) != defaults.get(key)
    )
    return hashlib.sha256(repr(binding).encode()).hexdigest()


@cache
def _defaults(checkout: Checkout) -> dict[str, str]:
    return {key: repr(value) for key, value in checkout.settings([], []).items()}


CHECKOUT = Checkout(Path(__file__).resolve().parents[2])
"""The checkout that this package is part of, if there is one."""

"""Which keys of a command line and its yaml files change nothing in a run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from yacs.config import CfgNode

import anchoropt_plugin
from anchoropt_plugin.config.check import flattened
from anchoropt_plugin.config.merge import read_yaml
from anchoropt_plugin.training.two_stages import TwoStages
from dassl.engine import TRAINER_REGISTRY

from .config import HOST_KEYS

_PUBLIC_KEYS = Path(anchoropt_plugin.__file__).parent / "assets" / "trainer_keys.yaml"
UNUSED_KEYS = frozenset(
    key
    for key, _ in flattened({"TRAINER": read_yaml(_PUBLIC_KEYS)["TRAINER"]})
    if key not in dict(flattened({"TRAINER": HOST_KEYS}))
)
"""Keys in scripts of public repositories whose trainers are not here; they change nothing."""

_READ_BY_BUILD = ("INPUT", "DATASET", "DATALOADER", "MODEL", "OPTIM")
"""The sections whose keys are read when a trainer is built."""
_READ_LATER = {"OPTIM.EXTEND"}  # when the run is resumed
_OF_PLAIN_HOSTS = ("FAST_TEXT", "CLASS_CHUNK", "SPLIT_CLASSES", "KEEP_FEATURES")


def keys_read(trainer: type) -> Callable[[str], bool]:
    """Return a function that tells whether a trainer reads a key ``TRAINER.<node>.<name>``.

    It is true for all other keys, and for a trainer without a node, such as ``ZeroshotCLIP``.
    """
    node = getattr(trainer, "node", None)
    further = [*getattr(trainer, "further_nodes", ()), *getattr(trainer, "nodes_of_data", ())]

    def reads(key: str) -> bool:
        section, of, name = key.split(".")
        if node is None or section != "TRAINER":
            return True
        if of == "ANCHOROPT":
            return issubclass(trainer, TwoStages) or name in _OF_PLAIN_HOSTS
        return of in (node, *further)

    return reads


def unused_keys(
    cfg: CfgNode, data_file: str | None, method_file: str | None, given: Iterable[str]
) -> list[str]:
    """Return the keys of other trainers, which change nothing in a run.

    The yaml file of a data set serves all trainers here, so their keys do not count there.

    Args:
        cfg: the configuration of the run.
        data_file: the yaml file of the data set, if any.
        method_file: the yaml file of the method, if any.
        given: the keys of the command line.
    """
    of_data, of_method = (
        {key for key, _ in flattened(read_yaml(path))} if path else set()
        for path in (data_file, method_file)
    )
    own, known = of_method | {*given}, dict(flattened(cfg)).keys()
    read = keys_read(TRAINER_REGISTRY.get(cfg.TRAINER.NAME))
    foreign = {key for key in own & known if key.count(".") == 2 and not read(key)}
    return sorted(foreign | (own | of_data) & UNUSED_KEYS - known)


def unread_keys(given: Iterable[str], read: Collection[str]) -> list[str]:
    """Return the keys of a command line that building the trainer has not read.

    Args:
        given: the keys of the command line.
        read: the keys that were read; see ``anchoropt_plugin.config.reads``.
    """
    return sorted(
        key
        for key in {*given} - UNUSED_KEYS - _READ_LATER
        if key.startswith(_READ_BY_BUILD) and key not in read
    )

"""Published settings of each host and data set, and published accuracies."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from anchoropt_plugin import UserError
from anchoropt_plugin.config.merge import read_yaml
from dassl.engine import TRAINER_REGISTRY

from .files import CONFIGS, find
from .plan import Settings

FOLDER = CONFIGS / "published"
ANCHORS = "anchors"
"""The file with the settings of stage 1, the same for all hosts."""


class Number(NamedTuple):
    """A published accuracy in per cent, and its source."""

    value: float
    source: str


def published_settings(host: str) -> tuple[str, dict[str, Settings]]:
    """Return the config file of a host, and for each data set the settings with AnchorOPT.

    The config file is also that of the plain host, whose soft tokens may start from words. With
    AnchorOPT all soft tokens are drawn: the released trainers ignore ``CTX_INIT``.

    Raises:
        UserError: nothing is published for this host.

    >>> config, settings = published_settings("MaPLe")
    >>> settings["caltech101"]["OPTIM.MAX_EPOCH"], settings["caltech101"]["TRAINER.MAPLE.CTX_INIT"]
    (10, '')
    """
    path = find(FOLDER, host, "host with published settings")
    if host in (ANCHORS, "numbers"):
        raise UserError(f"unknown host with published settings {host!r}")
    of_host, of_anchors = read_yaml(path), read_yaml(FOLDER / f"{ANCHORS}.yaml")
    drawn = {f"TRAINER.{TRAINER_REGISTRY.get(host).node}.CTX_INIT": ""}
    settings: dict[str, Settings] = {
        dataset: {**drawn, **_row(of_anchors, dataset), **_row(of_host, dataset)}
        for dataset in of_host["datasets"]
    }
    return of_host["config"], settings


def _row(table: dict[str, Any], dataset: str) -> dict[str, Any]:
    return dict(zip(table["keys"], table["datasets"][dataset], strict=True))


@cache
def _numbers() -> list[dict[str, Any]]:
    return read_yaml(FOLDER / "numbers.yaml")["tables"]


def published_numbers(method: str, **place: str | int) -> dict[str, Number]:
    """Return the published accuracies of a row, by column.

    Args:
        method: the name of a trainer, or of a row of an ablation.
        place: ``protocol``, ``backbone``, ``shots`` and ``datasets``. The last is a data set, or
            for an average the sorted names of its data sets, separated by blanks.

    >>> place = dict(protocol="base2new", backbone="ViT-B/16", shots=16, datasets="dtd")
    >>> published_numbers("averaging=anchors", **place)["new"].value
    62.56
    """
    found: dict[str, Number] = {}
    for table in _numbers():
        names = table["datasets"]
        of = " ".join(sorted(names)) if isinstance(names, list) else names
        if {**place} == {**{key: table[key] for key in place if key != "datasets"}, "datasets": of}:
            row = table["numbers"].get(method, [])
            numbers = [Number(float(value), table["source"]) for value in row]
            found.update(zip(table["columns"], numbers, strict=False))
    return found

"""Published settings of each host and data set, and published accuracies."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ..config.merge import read_yaml
from ..errors import UserError
from ..training.settings import LEARNED
from .checkout import CHECKOUT
from .files import ASSETS, find
from .plan import NODE, Job, Run, Settings

FOLDER = CHECKOUT.configs / "published"
ANCHORS = "anchors"
"""The file with the settings of stage 1, the same for all hosts."""
DESCRIPTIONS = ASSETS / "descriptions.yaml"
"""The names of the released descriptions of each data set."""
RELEASED = " (released)"
"""Behind a trainer's name: the row of the released method, beside which published numbers stand."""


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
    drawn = {f"TRAINER.{CHECKOUT.node(host)}.CTX_INIT": ""}
    settings: dict[str, Settings] = {
        dataset: {**drawn, **_row(of_anchors, dataset), **_row(of_host, dataset)}
        for dataset in of_host["datasets"]
    }
    return of_host["config"], settings


def _row(table: dict[str, Any], dataset: str) -> dict[str, Any]:
    return dict(zip(table["keys"], table["datasets"][dataset], strict=True))


def released_descriptions(folder: Path, dataset: str) -> Settings:
    """Return the setting of a data set's descriptions in the released folder of descriptions.

    Files of further data sets have the data set's name.
    """
    names = read_yaml(DESCRIPTIONS)["datasets"]
    return {f"{NODE}.DESCRIPTIONS": str(folder / names.get(dataset, f"{dataset}.json"))}


def check_anchors(jobs: Sequence[Job]) -> None:
    """Check that published runs get released anchors, or descriptions to learn anchors from.

    Raises:
        UserError: some would learn from templates; the message names their data sets.
    """
    runs = [job.runs[0] for job in jobs]
    missing = {run.group: run for run in runs if not run.method.templates and _lacks_anchors(run)}
    if missing:
        raise UserError(
            f"no anchors and no descriptions for {', '.join(missing)}: the published runs used "
            "those of https://github.com/zhengli97/ATPrompt. Give its anchors "
            f"({NODE}.ANCHOR_WEIGHTS path/to/anchor_weights, at the end) or its descriptions "
            "(--descriptions path/to/templates), or learn from templates (--templates)"
        )


def _lacks_anchors(run: Run) -> bool:
    given = (run.settings[f"{NODE}.{key}"] for key in ("ANCHOR_WEIGHTS", "DESCRIPTIONS"))
    return run.settings[f"{NODE}.ANCHOR"] == LEARNED and not any(given)


@cache
def _numbers() -> list[dict[str, Any]]:
    return read_yaml(FOLDER / "numbers.yaml")["tables"]


def published_numbers(method: str, **place: str | int) -> dict[str, Number]:
    """Return the published accuracies of a row, by column.

    Args:
        method: the name of a trainer, perhaps with ``RELEASED``, or of a row of an ablation.
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
            row = table["numbers"].get(method.removesuffix(RELEASED), [])
            numbers = [Number(float(value), table["source"]) for value in row]
            found.update(zip(table["columns"], numbers, strict=False))
    return found

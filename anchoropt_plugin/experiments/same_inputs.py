"""Runs of one table have the same images, class names and texts; paths alone do not tell."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from ..config.record import CLASSES, hash_of_weights, recorded_weights
from ..dassl_compat.saved_weights import CHANGED
from ..errors import UserError
from ..files.readers import read_json
from ..files.training_images import digest, digest_of_names, images_of, recorded
from ..training.run_record import RUN_RECORD, read_record, sources_of
from ..training.two_stages import TwoStages
from .plan import Job, Run
from .results import outcome

_NOT_OF_THE_SPLIT = ("DATASET.ROOT", "DATASET.NUM_SHOTS", "DATASET.TEMPLATE")
_BACKBONE = "MODEL.BACKBONE.NAME"
_PART = "DATASET.SUBSAMPLE_CLASSES"
_NAMES = "class names"
_DRAWN_BY = ("SEED", "DATASET.NUM_SHOTS")
_SOURCES = ("anchor_weights", "descriptions", "max_template_length")


class Input(NamedTuple):
    """Something that a run reads.

    Attributes:
        kind: what it is, for messages.
        place: a text that is equal for runs that must read the same.
        digest: of its content.
        folder: of the run.
    """

    kind: str
    place: str
    digest: str
    folder: Path


def check_same_inputs(jobs: Iterable[Job], planned: Iterable[Input] = ()) -> None:
    """Check that finished runs with the same settings of the data had the same data and texts.

    A run of an earlier version, which did not record them, is not compared.

    Args:
        jobs: of the experiment.
        planned: what unfinished runs would read.

    Raises:
        UserError: a data set or a file was changed between two runs, or a trainer its weights
            between its checkpoint and its own test.
    """
    jobs = list(jobs)
    for job in jobs:
        _check_one_model(job)
    first: dict[tuple[str, str], Input] = {}
    finished = (found for job in jobs for run in job.runs for found in _recorded(run))
    inputs = [*finished, *planned]
    _check_parts_differ(inputs)
    for found in inputs:
        other = first.setdefault((found.kind, found.place), found)
        if other.digest != found.digest:
            raise UserError(
                f"the {found.kind} of {other.folder} and {found.folder} differ, so their numbers "
                "do not belong into one table: undo the change, or remove the folders of the "
                "earlier runs, or give another --output-dir"
            )


def _check_parts_differ(inputs: Iterable[Input]) -> None:
    """Check that base and new classes are others, which a user's data set must see to."""
    first: dict[tuple[str, str], tuple[Any, Input]] = {}
    for found in inputs:
        if found.kind == _NAMES:
            data = json.loads(found.place)
            part = data.pop(_PART, None)
            key = json.dumps(data), found.digest
            other_part, other = first.setdefault(key, (part, found))
            if other_part != part:
                raise UserError(
                    f"{other.folder} and {found.folder} have the same classes, {_PART} "
                    f"{other_part} and {part}: the data set must call subsample_classes of "
                    "DatasetBase, as the public ones do"
                )


def _check_one_model(job: Job) -> None:
    for run in job.runs:
        is_tested_again = any(other.model == run.folder for other in job.runs)
        if run.trains and is_tested_again and outcome(run).get(CHANGED):
            raise UserError(
                f"{run.method.trainer} has changed its weights after the last checkpoint in "
                f"{run.folder}, so its own test and those of the checkpoint are of two models, and "
                "belong into no row: call save_model after the change, and remove the folder"
            )


def inputs_of(run: Run, trainer: Any) -> list[Input]:
    """Return what an unfinished run would read, given its trainer."""
    data_set = trainer.dm.dataset
    tested = images_of(data_set, run.settings["TEST.SPLIT"])
    found = [_named(run, digest_of_names(data_set.classnames))]
    if tested:
        found.append(_tested(run, tested))
    weights = hash_of_weights(run.settings[_BACKBONE])
    if run.trains and weights:
        found.append(_weights(run, weights))
    if run.trains and tested:
        found.append(_trained(run, digest(data_set.train_x)))
    if run.trains and isinstance(trainer, TwoStages) and trainer.anchoropt.sources:
        settings = asdict(trainer.anchoropt.settings)
        found.append(_sources(run, trainer.anchoropt.sources, settings))
    return found


def _recorded(run: Run) -> Iterator[Input]:
    results = outcome(run)
    tested = results.get("images")
    if isinstance(tested, dict):
        if "names" in tested:  # not in the file of an earlier version
            yield _named(run, tested["names"])
        yield _tested(run, tested)
    if not run.trains or not results:
        return
    images, sources = recorded(run.folder), sources_of(run.folder)
    weights, names = recorded_weights(run.folder), run.folder / CLASSES
    if names.is_file():
        yield _named(run, digest_of_names(read_json(names)))
    if weights:
        yield _weights(run, weights)
    if images:
        yield _trained(run, images["digest"])
    if sources:
        yield _sources(run, sources, read_record(run.folder / RUN_RECORD)["settings"])


def _named(run: Run, names: str) -> Input:
    return _input(run, _NAMES, names, {})


def _tested(run: Run, images: dict[str, Any]) -> Input:
    drawn = _DRAWN_BY if images["drawn"] else ()
    return _input(run, "test images", images["digest"], _settings(run, "TEST.SPLIT", *drawn))


def _weights(run: Run, content: str) -> Input:
    place = json.dumps(run.settings[_BACKBONE])
    return Input(f"weights in {run.settings[_BACKBONE]}", place, content, run.folder)


def _trained(run: Run, images: str) -> Input:
    return _input(run, "training images", images, _settings(run, *_DRAWN_BY))


def _sources(run: Run, sources: str, settings: Mapping[str, Any]) -> Input:
    # The trainer's own settings: arguments of @anchoropt may name files, too.
    of_sources = {key: settings[key] for key in _SOURCES}
    return _input(run, "descriptions or anchors", sources, of_sources)


def _settings(run: Run, *keys: str) -> dict[str, Any]:
    return {key: run.settings[key] for key in keys}


def _input(run: Run, kind: str, content: str, further: Mapping[str, Any]) -> Input:
    of_data = {
        key: value
        for key, value in run.settings.items()
        if key.startswith("DATASET.") and key not in _NOT_OF_THE_SPLIT
    }
    place = json.dumps({**of_data, **further}, sort_keys=True, default=str)
    return Input(kind, place, content, run.folder)

"""The check before the first run: data, weights, descriptions and trainers, each of them once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from ..dassl_compat.class_contexts import has_contexts
from ..dassl_compat.validation import check_split, check_validation
from ..errors import UserError
from ..training.checks import check_anchor_sources
from .execution import default_workers
from .fork_server import in_fork
from .plan import Run
from .same_inputs import Input, inputs_of


def check_root(runs: Iterable[Run], root: Path) -> None:
    """Check that no data set would be looked for, or written, among the class folders of another.

    Raises:
        UserError: ``root`` is the image folder of ``ImageFolder``, and another data set is in it.
    """
    names = dict.fromkeys(run.settings["DATASET.NAME"] for run in runs)
    if "ImageFolder" not in names or len(names) < 2:
        return
    # Imported here: an installed Dassl imports much for its data.
    from ..datasets import DATA_SETS
    from ..datasets.image_folder import is_image_folder

    others = [name for name in names if name in DATA_SETS and name != "ImageFolder"]
    if others and is_image_folder(root):
        raise UserError(
            f"--root {root} is the image folder of ImageFolder, so {', '.join(others)} cannot be "
            "in it: run ImageFolder apart, with an --output-dir of its own, or give your images a "
            "data set with its own folder in --root (SplitDataset)"
        )


def check_parts(runs: Iterable[Run]) -> tuple[list[str], list[Input]]:
    """Build the trainers of a few runs that together have all parts of all ``runs``.

    Building reads the data set and the weights; anchors and descriptions are read, too.

    Returns:
        Notes on what cannot be checked here: a trainer that needs a GPU, on a machine without one;
        and what the checked runs would read.

    Raises:
        UserError: a part is missing or broken; the message names the first run that needs it.
    """
    runs = list(runs)
    chosen = list(covering(runs))
    others = _tested_on_others(runs)
    with ThreadPoolExecutor(default_workers()) as pool:
        found = list(pool.map(_fault, chosen, (run.folder in others for run in chosen)))
    notes = []
    for run, (fault, _) in zip(chosen, found, strict=True):
        if fault and not torch.cuda.is_available() and ("CUDA" in fault or "NVIDIA" in fault):
            notes.append(f"not checked, as this machine has no GPU: {run}: {fault}")
        elif fault:
            raise UserError(f"before any run: {run}: {fault}")
    return notes, [one for _, inputs in found for one in inputs]


def covering(runs: Iterable[Run]) -> Iterator[Run]:
    """Yield the first run that has a part which none before has: a trainer, data, descriptions."""
    seen: set[Any] = set()
    # Trainings with AnchorOPT first: they have the most parts.
    for run in sorted(runs, key=lambda run: not _learns(run)):
        parts = {
            ("trainer", run.method.trainer, run.method.config),
            ("contexts", run.method.trainer, _has_csc(run)),
            ("data", run.dataset, _classes(run)),
            ("weights", run.settings["MODEL.BACKBONE.NAME"]),
        }
        if _learns(run):
            parts.add(("anchors", run.dataset, *_sources(run)))
        if not parts <= seen:
            seen |= parts
            yield run


def _learns(run: Run) -> bool:
    return run.trains and run.repository.is_two_stages(run.method.trainer)


def _sources(run: Run) -> Sequence[Any]:
    keys = ("ANCHOR", "ANCHOR_WEIGHTS", "DESCRIPTIONS")
    return [run.settings[f"TRAINER.ANCHOROPT.{key}"] for key in keys]


def _classes(run: Run) -> Any:
    return run.settings.get("DATASET.SUBSAMPLE_CLASSES")


def _has_csc(run: Run) -> bool:
    return any(value is True for key, value in run.settings.items() if key.endswith(".CSC"))


def _tested_on_others(runs: Iterable[Run]) -> set[Path]:
    """Return the folders of trainings on the base classes whose model is tested on the new ones."""
    trained = {run.folder: _classes(run) for run in runs if run.trains}
    tests = ((run.model, _classes(run)) for run in runs if run.model is not None)
    return {model for model, classes in tests if trained.get(model, classes) != classes}


def _fault(run: Run, tests_others: bool) -> tuple[str, list[Input]]:
    try:
        return "", in_fork(run.repository, _check, run, tests_others)
    except UserError as error:
        fault = str(error)
    except Exception as error:
        fault = f"{type(error).__name__}: {error}"
    return explained(fault, run.settings["MODEL.BACKBONE.NAME"]), []


def explained(fault: str, backbone: str) -> str:
    """Return a fault, with what to do if the trainer's own loader has not found its CLIP."""
    load = "let it return anchoropt_plugin.load_clip(name)"
    if fault == f"KeyError: {backbone!r}":  # it looks the name up among OpenAI's
        return (
            f"the trainer's loader does not know the CLIP {backbone!r}: {load} for names that it "
            "does not know"
        )
    if fault.startswith("URLError"):
        return (
            f"{fault}: the trainer's loader cannot download the weights of {backbone}: put them "
            f"where it looks (clip: ~/.cache/clip), or {load}"
        )
    return fault


def _check(run: Run, tests_others: bool) -> list[Input]:
    def use(trainer: Any) -> list[Input]:
        if tests_others and has_contexts(trainer, trainer.num_classes):
            raise UserError(
                "a context for each class (CSC True) fits the trained classes alone, and this "
                "protocol tests others: set CSC to False, or give --protocol few_shot"
            )
        _check_images(trainer.dm.dataset)
        check_split(trainer)
        if run.trains:
            check_validation(trainer)
            check_anchor_sources(trainer)
        return inputs_of(run, trainer)

    return run.repository.with_trainer(run.argv, use)


def _check_images(data_set: Any) -> None:
    """Check that all images exist: a data set of the user may find out in the middle of a run."""
    parts = (data_set.train_x, data_set.val, data_set.test)
    paths = dict.fromkeys(item.impath for part in parts for item in part or ())
    missing = [path for path in paths if not os.path.isfile(path)]  # noqa: PTH113 (a million)
    if missing:
        raise UserError(f"{len(missing)} of {len(paths)} images are missing, such as {missing[0]}")

"""Files of a run: ``anchoropt.json`` (what was trained) and ``position.jsonl`` (P by epoch)."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..config.record import RUN_RECORD
from ..config.same_run import check_same_weights
from ..errors import UserError
from ..files.atomic import write_text
from ..files.readers import json_or_none, read_json, read_text
from ..method.position import AnchorPositionModule
from .settings import AnchorOPTConfig

log = logging.getLogger("anchoropt_plugin")

HISTORY = "position.jsonl"
"""In the output folder: after each epoch, a line with the relaxed position matrix."""
READ_AT_TEST = (
    *("position", "position_task", "pooling", "deep_early", "deep_first", "sample_at_eval"),
    "anchor_len",
)
"""Settings that a checkpoint must be tested with."""


def write_record(
    folder: Path,
    cfg: Any,
    class_names: Sequence[str],
    settings: AnchorOPTConfig,
    sources: str | None = None,
) -> None:
    """Write ``anchoropt.json``, which tells a later test what was trained.

    Args:
        folder: of the checkpoints.
        cfg: the configuration of the run.
        class_names: names of the trained classes.
        settings: of AnchorOPT.
        sources: a digest of the file of anchors or descriptions.
    """
    record = {
        "trainer": cfg.TRAINER.NAME,
        "backbone": cfg.MODEL.BACKBONE.NAME,
        "classes": list(class_names),
        "settings": asdict(settings),
        "sources": sources,
    }
    write_text(folder / RUN_RECORD, json.dumps(record, indent=1))


def read_record(path: Path) -> dict[str, Any]:
    """Return the content of an ``anchoropt.json``; settings that it lacks had their default.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    record = read_json(path)
    match record:
        case {"backbone": str(), "classes": list(classes), "settings": dict(settings)} if all(
            isinstance(name, str) for name in classes
        ):
            return {**record, "settings": {**asdict(AnchorOPTConfig()), **settings}}
    raise UserError(f"{path} is not the record of a run: delete it or copy it anew")


def sources_of(folder: Path) -> str | None:
    """Return the digest of the anchors or descriptions that a run was given; None if unknown."""
    path = folder / RUN_RECORD
    sources = read_record(path).get("sources") if path.is_file() else None
    return sources if isinstance(sources, str) else None


def check_same_sources(folder: Path, sources: str) -> None:
    """Check that a run in an output folder, if any, had the same anchors or descriptions.

    Raises:
        UserError: a file under the same name had another content.
    """
    there = sources_of(folder)
    if there is not None and there != sources and any(folder.glob("*/checkpoint")):
        raise UserError(
            f"{folder} holds a run with another content of TRAINER.ANCHOROPT.DESCRIPTIONS or "
            "ANCHOR_WEIGHTS: give the file as it was, or another --output-dir"
        )


def note_other_anchors(file: Path, backbone: str, class_names: Sequence[str]) -> None:
    """Warn of anchors in the folder of a run that had another CLIP, or other classes alone."""
    path = file.parent.parent / RUN_RECORD
    if not path.is_file():
        return
    record = read_record(path)
    if Path(record["backbone"]).expanduser() != Path(backbone).expanduser():
        log.warning("%s was learned with the CLIP %s, not %s", file, record["backbone"], backbone)
    if not {*record["classes"]} & {*class_names}:
        log.warning("%s was learned from other classes than those of this run", file)


def trained_classes(folder: Path, cfg: Any, settings: AnchorOPTConfig) -> list[str] | None:
    """Return the names of the classes that a checkpoint was trained on; None without a record.

    Args:
        folder: of the checkpoints.
        cfg: the configuration of this run.
        settings: of this run; they must fit the checkpoint.

    Raises:
        UserError: the checkpoint was trained on another backbone, or with other settings that a
            test depends on.
    """
    path = folder / RUN_RECORD
    if not path.exists():
        log.warning(
            "%s is missing: DATASET.SUBSAMPLE_CLASSES decides which classes count as trained "
            "(base: all, otherwise: not all)",
            path,
        )
        return None
    record = read_record(path)
    backbone, is_same = record["backbone"], check_same_weights(cfg, folder)
    if not is_same and Path(backbone).expanduser() != Path(cfg.MODEL.BACKBONE.NAME).expanduser():
        raise UserError(
            f"{folder} was trained on {backbone}, this run has {cfg.MODEL.BACKBONE.NAME}: "
            "give the --config-file or --backbone of the trained model"
        )
    trained = record["settings"]
    for name in READ_AT_TEST:
        present = getattr(settings, name)
        if present != trained[name]:
            raise UserError(
                f"{folder} was trained with TRAINER.ANCHOROPT.{name.upper()} {trained[name]}, this "
                f"run has {present}: give the value it was trained with"
            )
    if settings.anchor_weights not in ("", trained["anchor_weights"]):
        log.warning(
            "TRAINER.ANCHOROPT.ANCHOR_WEIGHTS %s has no effect: a test takes the anchors of the "
            "checkpoint in %s",
            settings.anchor_weights,
            folder,
        )
    classes: list[str] = record["classes"]
    return classes


def check_trained_as_released(settings: AnchorOPTConfig) -> None:
    """Check that ``settings`` test a checkpoint of the released code as it was trained.

    Raises:
        UserError: they do not; such a checkpoint has no record.
    """
    released = AnchorOPTConfig.with_arguments({"preset": "reference"})
    names = [name for name in READ_AT_TEST if name != "anchor_len"]  # the file's shapes tell it
    wrong = [name for name in names if getattr(settings, name) != getattr(released, name)]
    if wrong:
        raise UserError(
            "a checkpoint of the released code, which trains with other settings than this run ("
            + ", ".join(f"{name.upper()} {getattr(released, name)}" for name in wrong)
            + "): give TRAINER.ANCHOROPT.PRESET reference"
        )


def write_history(folder: Path, epoch: int, position: AnchorPositionModule) -> None:
    """Add the relaxed position matrix after ``epoch`` (from 0) to ``position.jsonl``.

    A resumed run overwrites the lines of epochs that it trains again.
    """
    path = folder / HISTORY
    before = read_history(path) if epoch and path.exists() else []
    lines = [json.dumps(entry) for entry in before if entry["epoch"] <= epoch]
    matrix = [[round(x, 4) for x in row] for row in position.relaxed().tolist()]
    entry = {"epoch": epoch + 1, "temperature": position.temperature, "P": matrix}
    write_text(path, "\n".join([*lines, json.dumps(entry)]) + "\n")


def read_history(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a ``position.jsonl``: epoch (from 1), temperature, relaxed matrix P.

    Raises:
        UserError: the file cannot be read, or a line, which is named, holds something else.
    """
    entries = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        match json_or_none(line):
            case {"epoch": int(), "temperature": int() | float(), "P": list()} as entry:
                entries.append(dict(entry))
            case _:
                raise UserError(
                    f"{path}, line {number} is damaged: the file only records the position "
                    "matrix, and may be deleted"
                )
    return entries

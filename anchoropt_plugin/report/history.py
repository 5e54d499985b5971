"""The course of a training: the numbers of each epoch, and the position matrix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..files.run_events import read_events
from ..training.run_record import HISTORY, RUN_RECORD, read_history, read_record


def read_epochs(folder: Path) -> list[dict[str, Any]]:
    """Return a dict for each epoch: epoch, lr, and loss, acc, … as means over its batches."""
    return [event for event in read_events(folder) if event["event"] == "epoch"]


def read_positions(folder: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the history of the position matrix and the number of soft tokens.

    Returns:
        A dict ``{"epoch": …, "temperature": …, "P": (M + K, M + K)}`` for each epoch, and M. A run
        without AnchorOPT has an empty list and 0.

    Raises:
        UserError: a file cannot be read or holds something else.
    """
    if not (folder / HISTORY).exists() or not (folder / RUN_RECORD).exists():
        return [], 0
    history = read_history(folder / HISTORY)
    n_anchors = int(read_record(folder / RUN_RECORD)["settings"]["anchor_len"])
    return history, len(history[0]["P"]) - n_anchors if history else 0

"""What a run wrote while it trained: loss and accuracy of each epoch, the position matrix."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd

STEP = re.compile(r"^epoch \[(\d+)/\d+\] .* loss \S+ \((\S+)\) acc \S+ \((\S+)\)", re.MULTILINE)


def read_log(folder: Path) -> pd.DataFrame:
    """Columns epoch, loss, accuracy: the running means at the end of each epoch."""
    logs = sorted(folder.glob("log.txt*"), key=lambda path: path.stat().st_mtime)
    steps = [step for log in logs for step in STEP.findall(log.read_text(encoding="utf-8"))]
    last = {int(epoch): (float(loss), float(accuracy)) for epoch, loss, accuracy in steps}
    return pd.DataFrame(
        [(epoch, *values) for epoch, values in sorted(last.items())],
        columns=["epoch", "loss", "accuracy"],
    )


def read_positions(folder: Path) -> tuple[list[dict[str, Any]], int]:
    """The lines of ``position.jsonl`` and the number of soft tokens; nothing where there is none.

    Returns:
        Of each epoch ``{"epoch": …, "temperature": …, "P": (M + K, M + K)}``, and M.
    """
    try:
        lines = (folder / "position.jsonl").read_text(encoding="utf-8").splitlines()
        record = json.loads((folder / "anchoropt.json").read_text(encoding="utf-8"))
    except OSError:
        return [], 0
    history = [json.loads(line) for line in lines]
    return history, len(history[0]["P"]) - int(record["settings"]["anchor_len"])

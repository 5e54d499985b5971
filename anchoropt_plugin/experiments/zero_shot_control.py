"""A control without AnchorOPT: a host's logits, on new classes averaged with zero-shot CLIP's."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ..method.objective import average
from .checkout import Checkout
from .execution import default_workers
from .fork_server import in_fork
from .plan import Job, Run


def averaged_with_zero_shot(
    jobs: Sequence[Job], results: pd.DataFrame, host: str = "CoOp", reference: str = ""
) -> pd.DataFrame:
    """Return a host's rows, with its logits on new classes averaged with those of zero-shot CLIP.

    Nothing is trained: the logits are those of the finished tests.

    Args:
        jobs: the jobs of the experiment, which has base and new classes.
        results: the rows of their runs, with those of ``ZeroshotCLIP``.
        host: the method whose rows are taken.
        reference: the row of the tables that the new row is compared with; empty for no row.
    """
    runs = {run.folder: run for job in jobs for run in job.runs}
    # These rows are no runs of their own, and only their accuracy is computed.
    facts = ["seconds", "cpu_seconds", "peak_memory_mb", "macro_f1", "order", "predictions"]
    rows = results[results["method"] == host].drop(columns=facts, errors="ignore")
    zero_shot = results[results["method"] == "ZeroshotCLIP"].set_index(["group", "score"])["folder"]
    rows["method"], rows["reference"], rows["does"] = name_of(host), reference, "test"
    on_new = rows[rows["score"] == "new"]
    tested = dict.fromkeys([*on_new["folder"], *zero_shot[:, "new"]])
    with ThreadPoolExecutor(default_workers()) as pool:
        found = pool.map(lambda folder: _in_fork(runs[Path(folder)]), tested)
        of_folder = dict(zip(tested, found, strict=True))
    for index, row in on_new.iterrows():
        prompt, labels = of_folder[row["folder"]]
        of_clip, _ = of_folder[zero_shot[row["group"], "new"]]
        averaged = average(torch.from_numpy(prompt), torch.from_numpy(of_clip))
        correct = int((averaged.argmax(-1).numpy() == labels).sum())
        rows.loc[index, ["correct", "accuracy"]] = correct, 100 * correct / len(labels)
    return rows


def name_of(host: str) -> str:
    """Return the name of the control's row in the tables."""
    return f"{host}, averaged with zero-shot on new"


def _in_fork(run: Run) -> tuple[np.ndarray, np.ndarray]:
    return in_fork(run.repository, logits_of, run)


@torch.no_grad()
def logits_of(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Return the logits (N, C) of the images of a finished test, and their labels (N,)."""
    assert isinstance(run.repository, Checkout)  # no other repository has a zero-shot row
    repository = run.repository
    args = repository.parse(run.argv)
    batches: list[tuple[Any, Any]] = []
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = repository.build(repository.cfg(run.argv))
        if args.model_dir:
            trainer.load_model(args.model_dir, epoch=args.load_epoch)
        trainer.set_model_mode("eval")
        _, loader = trainer.split_and_loader(trainer.cfg.TEST.SPLIT)
        for batch in loader:
            images, labels = trainer.parse_batch_test(batch)
            batches.append((trainer.model_inference(images), labels))
    logits, labels = zip(*batches, strict=True)
    return torch.cat(logits).cpu().numpy(), torch.cat(labels).cpu().numpy()

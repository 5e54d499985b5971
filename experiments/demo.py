"""The demo: CoOp with and without AnchorOPT on real digits, and controls that explain the gain."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

import train
from anchoropt_plugin.method.objective import average
from dassl.engine import build_trainer

from .command import build_parser, parse, protocol_of, run_experiment
from .experiment import Experiment
from .factors import varied
from .plan import Job, Run, host_method, zero_shot_method

AVERAGED = "CoOp, averaged with zero-shot on new"
ABOUT = (
    "The embedded CLIP on scikit-learn's handwritten digits. Training: 16 images of each of zero … "
    "four (base classes). Tests: these classes, and five … nine (new classes). On new classes "
    "AnchorOPT averages the logits of the prompt with the logits of the anchors. The last rows are "
    "controls: a fixed order of the tokens, the anchors alone, and CoOp averaged with zero-shot "
    "CLIP."
)


def main(description: str | None, argv: Sequence[str] | None = None) -> int:
    """Run the demo; return its exit status."""
    args = parse(build_parser("demo.py", description), argv)
    plain = host_method("CoOp", "tiny", anchoropt=False)
    default = host_method("CoOp", "tiny", anchoropt=True, reference=plain.name)
    grid = {"position": ["identity"], "averaging": ["anchors"]}
    controls = varied(default, grid, True, "digits")[1:]
    names = ["CoOp_AnchorOPT, identity matrix", "anchor prompt alone"]
    methods = [
        zero_shot_method(plain.config),
        plain,
        default,
        *(replace(m, name=name) for m, name in zip(controls, names, strict=True)),
    ]
    protocol = protocol_of(args, datasets=["digits"])
    experiment = Experiment("AnchorOPT on CoOp", ABOUT, protocol, methods)
    return run_experiment(experiment, args, "demo", averaged_with_zero_shot)


def averaged_with_zero_shot(jobs: Sequence[Job], results: pd.DataFrame) -> pd.DataFrame:
    """Return CoOp's rows, with its logits on new classes averaged with those of zero-shot CLIP.

    Args:
        jobs: the jobs of the demo.
        results: the rows of their runs.
    """
    runs = {run.folder: run for job in jobs for run in job.runs}
    facts = ["seconds", "cpu_seconds", "peak_memory_mb"]  # these rows are no runs of their own
    rows = results[results["method"] == "CoOp"].drop(columns=facts, errors="ignore")
    zero_shot = results[results["method"] == "ZeroshotCLIP"].set_index("score")["folder"]
    rows["method"], rows["reference"], rows["does"] = AVERAGED, "", "test"
    for index, row in rows[rows["score"] == "new"].iterrows():
        prompt, labels = logits_of(runs[Path(row["folder"])])
        zero, _ = logits_of(runs[Path(zero_shot["new"])])
        correct = int((average(prompt, zero).argmax(-1) == labels).sum())
        rows.loc[index, ["correct", "accuracy"]] = correct, 100 * correct / len(labels)
    return rows


@torch.no_grad()
def logits_of(run: Run) -> tuple[Tensor, Tensor]:
    """Return the logits (N, C) of the images of a finished test, and their labels (N,)."""
    args = train.build_parser().parse_args(list(run.argv))
    batches: list[tuple[Any, Any]] = []
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = build_trainer(train.setup_cfg(args))
        if args.model_dir:
            trainer.load_model(args.model_dir, epoch=args.load_epoch)
        trainer.set_model_mode("eval")
        for batch in trainer.test_loader:
            images, labels = trainer.parse_batch_test(batch)
            batches.append((trainer.model_inference(images), labels))
    logits, labels = zip(*batches, strict=True)
    return torch.cat(logits), torch.cat(labels)

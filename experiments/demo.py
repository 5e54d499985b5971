"""The demo: CoOp with and without AnchorOPT on real digits, with the controls of a gain."""

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

from .command import build_parser, parse, run_experiment
from .experiment import Experiment
from .factors import varied
from .files import REPOSITORY
from .plan import Job, Method, Run, host_method
from .protocols import read_protocol

AVERAGED = "CoOp, averaged with zero-shot on new"
ABOUT = (
    "The embedded CLIP on scikit-learn's handwritten digits: 16 pictures a class of zero … four to "
    "train on (base), tests on these and on five … nine (new). On new classes AnchorOPT averages "
    "the prompt's logits with the anchors'. The last rows are controls: what a fixed order of the "
    "tokens, the anchors alone, or averaging CoOp with zero-shot give by themselves."
)


def main(description: str | None, argv: Sequence[str] | None = None) -> int:
    """Run the demo; return its exit status."""
    parser = build_parser("demo.py", description or "")
    args = parse(parser, argv)
    args.output_dir = args.output_dir or REPOSITORY / "output" / "demo"
    protocol = read_protocol(args.protocol or "base2new").with_changes(
        {"datasets": args.datasets or ["digits"], "shots": args.shots, "seeds": args.seeds}
    )
    plain = host_method("CoOp", "tiny", anchoropt=False)
    default = host_method("CoOp", "tiny", anchoropt=True, reference=plain.name)
    grid = {"position": ["identity"], "averaging": ["anchors"]}
    controls = varied(default, grid, True, "digits")[1:]
    names = ["CoOp_AnchorOPT, identity matrix", "anchor prompt alone"]
    methods = [
        Method("ZeroshotCLIP", "ZeroshotCLIP", plain.config, trained=False),
        plain,
        default,
        *(replace(m, name=name) for m, name in zip(controls, names, strict=True)),
    ]
    experiment = Experiment("AnchorOPT on CoOp", ABOUT, protocol, methods)
    return run_experiment(experiment, args, averaged_with_zero_shot)


def averaged_with_zero_shot(jobs: Sequence[Job], results: pd.DataFrame) -> pd.DataFrame:
    """CoOp's rows again, its logits averaged with those of zero-shot on new classes.

    Args:
        jobs: those of the demo.
        results: of their runs.
    """
    runs = {run.folder: run for job in jobs for run in job.runs}
    facts = ["seconds", "cpu_seconds", "peak_memory_mb"]  # of the runs, and these are none
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
    """The logits (N, C) that a finished test gives for its pictures, and their labels (N,)."""
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

"""Train CoOp with and without AnchorOPT on real digits, and show what came out.

Runs ``train.py`` for zero-shot CLIP, CoOp and CoOp_AnchorOPT on five digits (base) and tests on
them and on the five others (new), over several seeds, with the controls that tell where a gain
comes from. Nothing is downloaded; a run that is there already is not run again.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))


from report import Report, results_table, write_report
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

import train
from anchoropt_plugin import UserError
from anchoropt_plugin.objective import average
from dassl.engine import build_trainer

EPOCH = re.compile(r"^epoch \[(\d+)/(\d+)\]", re.MULTILINE)


@dataclass
class Method:
    """A row of trained runs: a trainer of train.py and what it is given besides."""

    name: str
    trainer: str
    keys: list[str] = field(default_factory=list)

    @property
    def folder(self) -> str:
        """Its name as a folder's."""
        return re.sub(r"\W+", "_", self.name)


ZERO_SHOT = Method("zero-shot CLIP", "ZeroshotCLIP")
COOP = Method("CoOp", "CoOp")
ANCHOROPT = Method("CoOp_AnchorOPT", "CoOp_AnchorOPT")
IDENTITY = Method(
    "CoOp_AnchorOPT, identity matrix",
    "CoOp_AnchorOPT",
    ["TRAINER.ANCHOROPT.POSITION", "identity"],
)
TRAINED = [COOP, ANCHOROPT, IDENTITY]


class Output(io.TextIOBase):
    """Takes what a run prints; tells of every epoch it sees begun."""

    def __init__(self, on_epoch: Callable[[int, int], None]) -> None:
        self.on_epoch = on_epoch

    def write(self, text: str) -> int:
        """Look for epochs in ``text``; the run's own log.txt keeps it."""
        for epoch, epochs in EPOCH.findall(text):
            self.on_epoch(int(epoch), int(epochs))
        return len(text)


class Demo:
    """Commands of train.py on Digits, and the logits that their models give."""

    def __init__(self, root: Path, output: Path) -> None:
        self.root, self.output = root, output

    def folder(self, method: Method, seed: int) -> Path:
        """Where a run writes."""
        return self.output / method.folder / f"seed{seed}"

    def command(self, method: Method, seed: int, classes: str, output: Path) -> list[str]:
        """The words after ``python train.py``."""
        configs = REPOSITORY / "configs"
        return [
            *("--root", str(self.root), "--output-dir", str(output)),
            *("--trainer", method.trainer, "--seed", str(seed)),
            *("--dataset-config-file", str(configs / "datasets/digits.yaml")),
            *("--config-file", str(configs / "trainers/CoOp/tiny.yaml")),
            *("DATASET.SUBSAMPLE_CLASSES", classes, *method.keys),
        ]

    def train(self, method: Method, seed: int, on_epoch: Callable[[int, int], None]) -> None:
        """Train on the base classes, as train.py does; a finished run is found and left."""
        command = self.command(method, seed, "base", self.folder(method, seed))
        with contextlib.redirect_stdout(Output(on_epoch)):
            status = train.main(command)
        if status:
            raise SystemExit(status)

    @torch.no_grad()
    def logits(self, method: Method, seed: int, classes: str) -> dict[str, Tensor]:
        """Of the test pictures: the method's logits, the anchors' where it has any, the labels."""
        run = self.folder(method, seed)
        command = self.command(method, seed, classes, run)
        out: dict[str, list[Tensor]] = {"logits": [], "anchors": [], "labels": []}
        with contextlib.redirect_stdout(io.StringIO()):
            cfg = train.setup_cfg(train.build_parser().parse_args(command))
            trainer = build_trainer(cfg)
            if method is not ZERO_SHOT:
                trainer.load_model(str(run), epoch=cfg.OPTIM.MAX_EPOCH)
            trainer.set_model_mode("eval")
            for batch in trainer.test_loader:
                images, labels = trainer.parse_batch_test(batch)
                out["logits"].append(trainer.model_inference(images))
                out["labels"].append(labels)
                if hasattr(trainer, "anchoropt"):
                    out["anchors"].append(trainer.anchoropt.logits())
        return {name: torch.cat(parts) for name, parts in out.items() if parts}


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """In per cent."""
    return 100 * (logits.argmax(-1) == labels).float().mean().item()


def rows(demo: Demo, seeds: list[int]) -> Iterator[dict[str, str | int | float]]:
    """One row a method and seed: its accuracy on the base and on the new classes."""
    zero_shot = {c: demo.logits(ZERO_SHOT, 0, c) for c in ("base", "new")}

    def row(method: str, seed: int, base: Tensor, new: Tensor) -> dict[str, str | int | float]:
        labels = (zero_shot["base"]["labels"], zero_shot["new"]["labels"])
        return {
            "method": method,
            "seed": seed,
            "base": accuracy(base, labels[0]),
            "new": accuracy(new, labels[1]),
        }

    for seed in seeds:
        yield row(ZERO_SHOT.name, seed, *(zero_shot[c]["logits"] for c in ("base", "new")))
        of = {m.name: [demo.logits(m, seed, c) for c in ("base", "new")] for m in TRAINED}
        for name, (base, new) in of.items():
            yield row(name, seed, base["logits"], new["logits"])
        base, new = of[COOP.name]
        averaged = average(new["logits"], zero_shot["new"]["logits"])
        yield row("CoOp, averaged with zero-shot on new", seed, base["logits"], averaged)
        base, new = of[ANCHOROPT.name]
        yield row("anchor prompt alone", seed, base["anchors"], new["anchors"])


def finish(progress: Progress, task: TaskID) -> None:
    """Fill a bar; that of a run found finished has no length yet."""
    total = progress.tasks[task].total or 1
    progress.update(task, total=total, completed=total)


def main() -> int:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=REPOSITORY / "data", help="data folder")
    parser.add_argument(
        "--output-dir", type=Path, default=REPOSITORY / "output/demo", help="runs and report"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    args = parser.parse_args()
    started = time.time()
    demo = Demo(args.root, args.output_dir)
    console = Console()
    console.print(
        "[bold]AnchorOPT on CoOp[/bold]: the embedded CLIP on scikit-learn's handwritten digits, "
        "base zero … four, new five … nine, 16 pictures a class"
    )
    columns = TextColumn("{task.description:<34}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        for method in TRAINED:
            for seed in args.seeds:
                task = progress.add_task(f"{method.name}, seed {seed}", total=None)

                def advance(epoch: int, epochs: int, task: TaskID = task) -> None:
                    progress.update(task, completed=epoch, total=epochs)

                demo.train(method, seed, advance)
                finish(progress, task)
        task = progress.add_task("testing on base and new", total=None)
        table = results_table(list(rows(demo, args.seeds)))
        finish(progress, task)
    report = Report(
        table=table,
        runs={m.name: [demo.folder(m, s) for s in args.seeds] for m in TRAINED},
        matrix=demo.folder(ANCHOROPT, args.seeds[0]),
        seconds=time.time() - started,
    )
    page = write_report(report, args.output_dir)
    console.print(report.rich_table())
    console.print(report.caption)
    console.print(f"Report: {page}   ({report.seconds:.0f} s)")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)

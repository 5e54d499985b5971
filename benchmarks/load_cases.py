"""The cases of `load.py`: very many classes, images, runs and descriptions.

A case is a generator with the arguments size and folder. It yields "" after its preparation, which
is not measured, and the name of each part after that part. It may return how many bytes it wrote.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

import train
from anchoropt_plugin.config.record import RECORD, RUN_RECORD
from anchoropt_plugin.datasets.table import TABLE
from anchoropt_plugin.encoders.clip_models import load_clip
from anchoropt_plugin.encoders.text_tower import TextTower
from anchoropt_plugin.experiments import compare
from anchoropt_plugin.experiments.facts import write_facts
from anchoropt_plugin.experiments.plan import Run, plan
from anchoropt_plugin.experiments.protocols import Protocol, read_protocol
from anchoropt_plugin.files.readers import read_json
from anchoropt_plugin.files.run_events import EVENTS, model_of_test, read_results, write_results
from anchoropt_plugin.method import descriptions
from anchoropt_plugin.method.anchor_learning import StageOne
from anchoropt_plugin.method.anchors import AnchorTokens
from anchoropt_plugin.training.without_data import without_data
from benchmarks.many_classes import CHUNK, IMAGENET_21K
from benchmarks.plain import class_names
from dassl.data.datasets import build_dataset
from dassl.engine import TRAINER_REGISTRY

Parts = Generator[str, None, int | None]
MB = 1_000_000


class Load(NamedTuple):
    """A case and its bound of memory.

    Attributes:
        parts: the generator of the case.
        unit: the objects that the size counts.
        sizes: the sizes to measure; the last one is the full size.
        bytes_each: allowed memory for each object, in bytes.
        bytes_more: allowed memory for any size, beyond the memory after the imports.
    """

    parts: Callable[[int, Path], Parts]
    unit: str
    sizes: tuple[int, ...]
    bytes_each: int
    bytes_more: int = 300 * MB


def distinct_names(n: int) -> list[str]:
    """Return ``n`` class names that all differ."""
    return [f"{name} {number}" for number, name in enumerate(class_names(n))]


def configured(folder: Path, root: Path, config: str, *keys: str) -> Any:
    """Return the configuration of CoOp_AnchorOPT on the embedded CLIP."""
    words = [
        *("--root", str(root), "--output-dir", str(folder / "out"), "--seed", "1"),
        *("--trainer", "CoOp_AnchorOPT", "--config-file", "configs/trainers/CoOp/tiny.yaml"),
        *("--dataset-config-file", f"configs/datasets/{config}.yaml"),
        *("TRAINER.ANCHOROPT.ANCHOR_CACHE", str(folder / "anchors")),
        *("USE_CUDA", "False", "VERBOSE", "False", "DATALOADER.NUM_WORKERS", "0", *keys),
    ]
    return train.setup_cfg(train.build_parser().parse_args(words))


# ---------------------------------------------------------------------- classes
STEPS, BATCH = 4, 32


def many_classes(n: int, folder: Path) -> Parts:
    """Read image folders of ``n`` classes and a file of their names; run CoOp_AnchorOPT on them."""
    root, names = folder / "images", distinct_names(n)
    image = folder / "image.png"
    Image.new("RGB", (32, 32)).save(image)
    for part in ("train", "test"):
        for number in range(n):
            (root / part / f"n{number:05}").mkdir(parents=True)
            os.link(image, root / part / f"n{number:05}" / "0.png")
    lines = [f"n{number:05} {name}\n" for number, name in enumerate(names)]
    (root / "classnames.txt").write_text("".join(lines))
    keys = ["TRAINER.ANCHOROPT.CLASS_CHUNK", str(CHUNK), "TRAINER.ANCHOROPT.ANCHOR_EPOCHS", "1"]
    cfg = configured(folder, root, "image_folder", *keys)
    generator = torch.Generator().manual_seed(0)
    batches = [
        {
            "img": torch.randn(BATCH, 3, 32, 32, generator=generator),
            "label": torch.randint(n, (BATCH,), generator=generator),
        }
        for _ in range(STEPS)
    ]
    yield ""
    assert build_dataset(cfg).classnames == names
    yield "read the data set"
    trainer = without_data(TRAINER_REGISTRY.get(cfg.TRAINER.NAME), names, batches)(cfg)
    yield "build the model"
    trainer.before_train()
    yield f"stage 1, {STEPS} steps"
    trainer.epoch = 0
    trainer.before_epoch()
    trainer.run_epoch()
    yield f"stage 2, {STEPS} steps"
    trainer.test()
    yield f"test, {STEPS} batches"


# ---------------------------------------------------------------------- images
TEN = 10


def many_images(n: int, folder: Path) -> Parts:
    """Test ``n`` images, each a file of its own; no two have the same features."""
    root, draw = folder / "data", random.Random(0)
    rows = [
        [f"{number % 100}/{number}.png", number % TEN, str(number % TEN)]
        for number in range(n + 4 * TEN)
    ]
    for number in range(100):
        (root / "images" / str(number)).mkdir(parents=True)
    for path, *_ in rows:
        Image.frombytes("RGB", (32, 32), draw.randbytes(3 * 32 * 32)).save(root / "images" / path)
    split = {"train": rows[n:], "test": rows[:n]}
    (root / "split.json").write_text(json.dumps(split))
    (folder / "out").mkdir()
    keys = ["TRAINER.ANCHOROPT.ANCHOR_EPOCHS", "1", "TEST.PER_CLASS_RESULT", "True"]
    cfg = configured(folder, root, "image_folder", *keys, "TEST.COMPUTE_CMAT", "True")
    yield ""
    trainer = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)(cfg)
    trainer.anchoropt_stage_one()
    yield "build the model"
    trainer.test()
    yield "test"


# ---------------------------------------------------------------------- runs
SEEDS = 5
EPOCHS = 20
HOSTS = ("CoOp", "CoCoOp", "MaPLe")
OF_A_SET = 2 * (2 * len(HOSTS) * SEEDS + 1)
"""Runs for each data set: training and test for each method and seed, and two zero-shot tests."""
DATA_SETS = [*(row.config for row in TABLE), "digits", "shapes"]


def many_runs(n: int, folder: Path) -> Parts:
    """Run the command of a comparison, from plan to report; all its ``n`` runs are finished."""
    out, names = folder / "compared", DATA_SETS[: n // OF_A_SET]
    seeds = [str(seed) for seed in range(1, SEEDS + 1)]
    words = ["--hosts", *HOSTS, "--config", "tiny", "--datasets", *names, "--seeds", *seeds]
    words += ["--root", str(folder), "--output-dir", str(out), "--protocol", "base2new"]
    changes = {"datasets": names, "seeds": [*range(1, SEEDS + 1)]}
    _finish(read_protocol("base2new").with_changes(changes), out, folder)
    yield ""
    assert compare.main("", [*words, "--dry-run"]) == 0
    yield "plan, and see what is finished"
    assert compare.main("", words) == 0
    yield "the same, tables and report"
    return (out / "report.html").stat().st_size


def _finish(protocol: Protocol, out: Path, folder: Path) -> None:
    """Write the files of a real run into each run's folder, with a random accuracy."""
    keys = ["OPTIM.MAX_EPOCH", str(EPOCHS), "DATASET.NUM_SHOTS", "1"]
    real = configured(folder, folder, "digits", *keys)
    train.run(real, train.build_parser().parse_args([]))
    real_results = read_results(folder / "out")
    draw = random.Random(0)
    methods = compare.methods_of(HOSTS, "tiny", protocol.datasets)
    for run in (run for job in plan(protocol, methods, folder, out, []) for run in job.runs):
        correct = draw.randint(300, 400)
        accuracy = 100 * correct / real_results["total"]
        leave(run, {**real_results, "correct": correct, "accuracy": accuracy})
        if run.trains:
            for name in ("position.jsonl", EVENTS):
                (run.folder / name).write_bytes((folder / "out" / name).read_bytes())
            record = read_json(folder / "out" / RUN_RECORD)
            for name in record["settings"]:
                record["settings"][name] = run.settings[f"TRAINER.ANCHOROPT.{name.upper()}"]
            (run.folder / RUN_RECORD).write_text(json.dumps(record))


def leave(run: Run, results: dict[str, Any]) -> None:
    """Write the files that mark a run as finished into its folder."""
    run.folder.mkdir(parents=True)
    cfg = train.setup_cfg(train.build_parser().parse_args(list(run.argv)))
    (run.folder / RECORD).write_text(cfg.dump())
    if run.trains:
        (run.folder / "prompt_learner").mkdir()
        (run.folder / "prompt_learner" / "checkpoint").write_text(f"model.pth.tar-{EPOCHS}")
    of_run = {key: run.settings[key] for key in results.get("settings", {})}
    more: dict[str, Any] = {"after_training": run.trains, "settings": of_run}
    if "images" in results:
        classes = str(run.settings["DATASET.SUBSAMPLE_CLASSES"])
        more["images"] = {**results["images"], "names": classes}
    if run.model:
        more["model"] = model_of_test(run.folder, run.model, run.epoch)
    write_results(run.folder, {**results, **more})
    write_facts({"seconds": 1.0, "commit": "", "device": "cpu", "torch": "2"}, run.folder)


# ---------------------------------------------------------------------- descriptions
PER_CLASS = 48
LIMIT = 5
"""``MAX_TEMPLATE_LENGTH``: stage 1 uses this many descriptions of each class."""


def many_descriptions(n: int, folder: Path) -> Parts:
    """Read a json file of ``n`` bytes, 48 sentences for each class; learn from 5 of each class."""
    path, names = folder / "descriptions.json", distinct_names(IMAGENET_21K)
    rest = "is often seen outside, in a bright place with trees, by people who know it"
    written, described = 2, []
    with path.open("w") as file:
        file.write("{")
        for number, name in enumerate(names):
            texts = [f"A photo of {name}, which {rest} for {i} years." for i in range(PER_CLASS)]
            line = f"{',' if number else ''}{json.dumps(name)}: {json.dumps(texts)}"
            if written + len(line) > n:
                break
            written += file.write(line)
            described.append(name)
        file.write("}")
    yield ""
    texts = descriptions.read(path, described, LIMIT)
    yield "read"
    tower = TextTower(load_clip("tiny"))
    AnchorTokens.learn(tower, described, texts, StageOne(epochs=1))
    yield f"stage 1 of {LIMIT} a class, one step"


LOADS = {
    "classes": Load(
        many_classes, "classes", (2_730, 5_460, 10_920, IMAGENET_21K), 320_000, 900 * MB
    ),
    "images": Load(many_images, "images", (12_500, 25_000, 50_000, 100_000), 1_000),
    "runs": Load(many_runs, "runs", tuple(OF_A_SET * sets for sets in (2, 4, 8, 17)), 100_000),
    "descriptions": Load(
        many_descriptions, "bytes", tuple(round(part * MB) for part in (12.5, 25, 50, 100)), 12
    ),
}

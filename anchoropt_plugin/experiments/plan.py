"""The plan of an experiment: methods × data sets × shots × seeds as commands of ``train.py``."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..training.settings import LEARNED
from ..training.two_stages import SUFFIX
from .checkout import CHECKOUT
from .protocols import Part, Protocol
from .repository import Repository

STAGE_ONE = (
    "MODEL.BACKBONE.NAME",
    "DATASET.NAME",
    "DATASET.NUM_SHOTS",
    "DATASET.SUBSAMPLE_CLASSES",
    "DATASET.CLASS_SPLIT",
    "DATALOADER.TRAIN_X.BATCH_SIZE",
    "TRAINER.ANCHOROPT.ANCHOR_LEN",
    "TRAINER.ANCHOROPT.ANCHOR_EPOCHS",
    "TRAINER.ANCHOROPT.ANCHOR_LR",
    "TRAINER.ANCHOROPT.ANCHOR_MSE_WEIGHT",
    "TRAINER.ANCHOROPT.DESCRIPTIONS",
    "TRAINER.ANCHOROPT.MAX_TEMPLATE_LENGTH",
)
"""The keys that anchors depend on. Runs with the same values share one stage 1."""

_SET_BY_FLAGS = {
    "DATASET.NUM_SHOTS": "--shots",
    "DATASET.SUBSAMPLE_CLASSES": "--protocol",
    "DATASET.NAME": "--datasets",
    "DATASET.ROOT": "--root",
    "TRAINER.NAME": "--hosts",
    "SEED": "--seeds",
    "OUTPUT_DIR": "--output-dir",
}
"""The keys that make the runs of an experiment different: one value for all mixes them up."""

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Method:
    """A row of the tables.

    Attributes:
        name: the name of the row.
        trainer: the trainer of train.py.
        config: the yaml file of the trainer.
        settings: additional keys and values.
        of_dataset: additional keys and values for each data set of the training.
        at_test: keys and values for tests only. Their training is the one of the method without
            them.
        reference: the row that differences are taken to; empty for no row.
        factors: in an ablation, the changed factors and their values.
        factors_at_test: in an ablation, the changed factors that only matter in tests.
        defaults: in an ablation, for the unchanged row: the values of all factors.
        trained: whether the method is trained, or only tested.
        has_seeds: whether the accuracy depends on the seed; otherwise the first seed is enough.
        templates: whether stage 1 may learn from templates where no descriptions are given.
        repository: the repository of the trainer.
    """

    name: str
    trainer: str
    config: Path
    settings: Settings = field(default_factory=dict)
    of_dataset: Mapping[str, Settings] = field(default_factory=dict)
    at_test: Settings = field(default_factory=dict)
    reference: str = ""
    factors: Mapping[str, Any] = field(default_factory=dict)
    factors_at_test: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    trained: bool = True
    has_seeds: bool = True
    templates: bool = True
    repository: Repository = CHECKOUT

    @property
    def host(self) -> str:
        """Return the trainer's name without AnchorOPT."""
        return self.trainer.removesuffix(SUFFIX)

    def variant(self, tested: bool) -> str:
        """Return the suffix of the config file's name in folders: ``-position=identity``."""
        factors = {**self.factors, **self.factors_at_test} if tested else self.factors
        text = "".join(f"-{name}={value}" for name, value in factors.items())
        return re.sub(r"[^\w.=-]+", "_", text)


@dataclass(frozen=True)
class Run:
    """One command of ``train.py``, and the place of its accuracy in the tables.

    Attributes:
        method: the row of the tables.
        group: the data set of the training, which has a table of its own.
        dataset: the data set of the test.
        score: the column of the tables.
        shots: the number of training images per class.
        seed: the random seed.
        argv: the words after ``python train.py``.
        folder: the output folder.
        model: the output folder of the tested model; None for a training or without a model.
        epoch: of the tested checkpoint; None for the best one, or without a model.
        settings: all keys of the configuration and their values.
        reported: whether the accuracy is in the tables. A method with settings for tests only
            needs a training whose own accuracy is not.
    """

    method: Method
    group: str
    dataset: str
    score: str
    shots: int
    seed: int
    argv: tuple[str, ...]
    folder: Path
    model: Path | None
    epoch: int | None
    settings: Settings = field(repr=False)
    reported: bool = True

    @property
    def repository(self) -> Repository:
        """Return the repository of the trainer."""
        return self.method.repository

    @property
    def trains(self) -> bool:
        """Tell whether the run trains, or only tests."""
        return "--eval-only" not in self.argv

    def __str__(self) -> str:
        doing = "train" if self.trains else "test"
        return f"{self.method.name}, {self.dataset} {self.score}, seed {self.seed}: {doing}"


@dataclass
class Job:
    """Runs that are executed one after another: a training and the tests of its model.

    Attributes:
        runs: the runs, in order.
        anchors: a text that is the same for jobs with the same anchors; empty if the job learns
            no anchors, or anchors that no other job can share.
    """

    runs: list[Run]
    anchors: str = ""


def host_method(
    host: str, config: str, anchoropt: bool, repository: Repository = CHECKOUT, **rest: Any
) -> Method:
    """Return a method: a host with or without AnchorOPT and a configuration file.

    Raises:
        UserError: there is no such host or no such file.
    """
    path = repository.trainer_config(host, config)
    trainer = host + SUFFIX if anchoropt else host
    own = {"name": trainer, "trainer": trainer, "config": path, "repository": repository}
    return Method(**{**own, **rest})


def zero_shot_method(config: Path) -> Method:
    """Return zero-shot CLIP as a method, with the backbone of a yaml file."""
    return Method("ZeroshotCLIP", "ZeroshotCLIP", config, trained=False, has_seeds=False)


def plan(
    protocol: Protocol, methods: Sequence[Method], root: Path, output: Path, opts: Sequence[str]
) -> list[Job]:
    """Return the jobs of an experiment.

    Args:
        protocol: the protocol.
        methods: the rows of its tables.
        root: the folder of the data sets.
        output: the folder of all runs.
        opts: KEY VALUE pairs for all runs; they override other settings.

    Raises:
        UserError: train.py would refuse a run; nothing is written.
    """
    for key, flag in _SET_BY_FLAGS.items():
        if key in opts[::2]:
            raise UserError(f"{key} is set for each run: give {flag}")
    for method in methods:
        for key in opts[::2]:
            if key in {**method.settings, **method.at_test}:
                raise UserError(
                    f"{key} is given for all rows, but the row {method.name} has a value of its "
                    "own: leave one of them out"
                )
    if len(protocol.shots) > 1 and "{shots}" not in protocol.train.score:
        raise UserError(
            f"the protocol {protocol.name} has no columns for several numbers of shots: give one "
            "(--shots), with an --output-dir for each, or --protocol few_shot"
        )
    jobs: dict[Path, dict[Path, Run]] = {}
    for group, shots, method in itertools.product(protocol.datasets, protocol.shots, methods):
        seeds = protocol.seeds_for(group)
        for seed in seeds if method.has_seeds else seeds[:1]:
            cell = _Cell(protocol, root, output, opts, method, group, shots, seed)
            for run in cell.runs():
                runs = jobs.setdefault(run.model or run.folder, {})
                if run.reported or run.folder not in runs:
                    runs[run.folder] = run
    return [_job(list(runs.values())) for runs in jobs.values()]


@dataclass
class _Cell:
    """A method, trained on one data set with one number of images and one seed."""

    protocol: Protocol
    root: Path
    output: Path
    opts: Sequence[str]
    method: Method
    group: str
    shots: int
    seed: int

    def runs(self) -> Iterator[Run]:
        """Yield the runs of the cell; methods that differ only in tests share a training."""
        tests = [*self.protocol.tests]
        flags, model, epoch = ["--eval-only"], None, None
        if self.method.trained:
            trained = self._run(self.protocol.train, self.group)
            yield replace(trained, reported=not self.method.at_test)
            model = trained.folder
            flags += ["--model-dir", str(model)]
            if trained.settings["TEST.FINAL_MODEL"] == "last_step":
                epoch = trained.settings["OPTIM.MAX_EPOCH"]
                flags += ["--load-epoch", str(epoch)]
        if self.method.at_test or not self.method.trained:
            tests.insert(0, self.protocol.train)
        for part in tests:
            for dataset in part.datasets or [self.group]:
                yield self._run(part, dataset, flags, model, epoch)

    def _run(
        self,
        part: Part,
        dataset: str,
        flags: Sequence[str] = (),
        model: Path | None = None,
        epoch: int | None = None,
    ) -> Run:
        """Return the training, or with ``flags`` a test."""
        method = self.method
        settings = {
            "DATASET.SUBSAMPLE_CLASSES": part.classes,
            "DATASET.NUM_SHOTS": self.shots,
            **method.settings,
            **method.of_dataset.get(self.group, {}),
            **(method.at_test if flags else {}),
        }
        keys = [word for key, value in settings.items() for word in (key, str(value))]
        words = [
            *("--root", str(self.root), "--trainer", method.trainer, "--seed", str(self.seed)),
            *("--dataset-config-file", str(method.repository.dataset_config(dataset))),
            *("--config-file", str(method.config)),
        ]
        found = method.repository.settings(words, [*keys, *self.opts])
        places = {
            "dataset": dataset,
            "shots": self.shots,
            "trainer": method.trainer,
            "config": method.config.stem + method.variant(tested=bool(flags)),
            "seed": self.seed,
            **_context(found, method),
        }
        folder = self.output / part.folder.format(**places)
        argv = (*words, "--output-dir", str(folder), *flags, *keys, *self.opts)
        method.repository.check(argv, folder)
        return Run(
            method,
            self.group,
            dataset,
            part.score.format(**places),
            self.shots,
            self.seed,
            argv=argv,
            folder=folder,
            model=model,
            epoch=epoch,
            settings={**found, "OUTPUT_DIR": str(folder)},
        )


def _job(runs: list[Run]) -> Job:
    first = runs[0]
    method = first.method
    if not first.trains or not method.repository.is_two_stages(method.trainer):
        return Job(runs)
    if any(first.settings[f"{NODE}.{key}"] != value for key, value in _NOT_SHARED.items()):
        return Job(runs)
    return Job(runs, repr([first.settings.get(key) for key in STAGE_ONE]))


NODE = "TRAINER.ANCHOROPT"
_NOT_SHARED = {"ANCHOR": LEARNED, "ANCHOR_WEIGHTS": "", "ANCHOR_CE_WEIGHT": 0.0}
"""With another value of one of these keys, the run has no stage 1 or a stage 1 of its own."""


def _context(settings: Settings, method: Method) -> dict[str, Any]:
    """Return the values of the context that the public folder names contain."""
    section = f"TRAINER.{method.repository.node(method.trainer)}"
    return {
        "n_ctx": settings[f"{NODE}.N_CTX"] or settings.get(f"{section}.N_CTX", 0),
        "csc": settings.get(f"{section}.CSC", False),
        "ctp": settings.get(f"{section}.CLASS_TOKEN_POSITION", "end"),
    }

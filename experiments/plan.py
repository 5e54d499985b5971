"""What an experiment runs: methods × data sets × shots × seeds, as commands of ``train.py``."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

import train
from anchoropt_plugin import UserError
from anchoropt_plugin.config.check import flattened
from anchoropt_plugin.errors import nearest
from anchoropt_plugin.training.settings import LEARNED, AnchorOPTConfig
from anchoropt_plugin.training.two_stages import SUFFIX, TwoStages
from dassl.engine import TRAINER_REGISTRY

from .files import CONFIGS, find
from .protocols import Part, Protocol

STAGE_ONE = (
    "MODEL.BACKBONE.NAME",
    "DATASET.NAME",
    "DATASET.NUM_SHOTS",
    "DATASET.SUBSAMPLE_CLASSES",
    "DATALOADER.TRAIN_X.BATCH_SIZE",
    "TRAINER.ANCHOROPT.ANCHOR_LEN",
    "TRAINER.ANCHOROPT.ANCHOR_EPOCHS",
    "TRAINER.ANCHOROPT.ANCHOR_LR",
    "TRAINER.ANCHOROPT.ANCHOR_MSE_WEIGHT",
    "TRAINER.ANCHOROPT.DESCRIPTIONS",
    "TRAINER.ANCHOROPT.MAX_TEMPLATE_LENGTH",
)
"""Keys that anchors depend on: where they agree, stage 1 is run once."""

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Method:
    """A row of the tables.

    Attributes:
        name: of the row.
        trainer: of train.py.
        config: its yaml file.
        settings: keys and values besides.
        of_dataset: further ones of each data set that is trained on.
        at_test: keys and values that are set in tests alone: what is tested is the model that the
            method without them trains.
        reference: the row that its difference is taken to; empty: none.
        factors: in an ablation, what is varied here, and to what,
        factors_at_test: and what of that is varied in tests alone.
        defaults: in an ablation, of the row that nothing is varied in: the values of all factors.
        trained: whether it is trained at all.
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

    @property
    def host(self) -> str:
        """The trainer's name without AnchorOPT."""
        return self.trainer.removesuffix(SUFFIX)

    def variant(self, tested: bool) -> str:
        """What stands behind the config file's name in folders, as ``-position=identity``."""
        factors = {**self.factors, **self.factors_at_test} if tested else self.factors
        text = "".join(f"-{name}={value}" for name, value in factors.items())
        return re.sub(r"[^\w.=-]+", "_", text)


@dataclass(frozen=True)
class Run:
    """One command of ``train.py``, and the place of its accuracy in the tables.

    Attributes:
        argv: the words after ``python train.py``.
        folder: its output folder.
        model: the output folder of the run that it tests; None where it trains, or needs none.
        settings: all keys of its configuration and their values.
        reported: whether its accuracy is the method's, or another run's with what is set at test.
        dataset: on which it is tested.
        group: of the table: the data set that is trained on.
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
    settings: Settings = field(repr=False)
    reported: bool = True

    @property
    def trains(self) -> bool:
        """Whether it trains, or only tests."""
        return "--eval-only" not in self.argv

    def __str__(self) -> str:
        doing = "train" if self.trains else "test"
        return f"{self.method.name}, {self.dataset} {self.score}, seed {self.seed}: {doing}"


@dataclass
class Job:
    """Runs that are done one after another: a training and the tests of what it gives.

    Attributes:
        anchors: what its stage 1 depends on, the same text for the same anchors; empty: it
            learns none, or none that others share.
    """

    runs: list[Run]
    anchors: str = ""


def host_method(host: str, config: str, anchoropt: bool, **rest: Any) -> Method:
    """A host of the registry, with or without AnchorOPT, with a file of ``configs/trainers``.

    Raises:
        UserError: there is no such host or no such file.
    """
    names = TRAINER_REGISTRY.registered_names()
    hosts = [name for name in names if name + SUFFIX in names]
    if host not in hosts:
        raise UserError(f"unknown host {host!r}{nearest(host, hosts)}: one of {', '.join(hosts)}")
    path = find(CONFIGS / "trainers" / host, config, f"config of {host}")
    trainer = host + SUFFIX if anchoropt else host
    return Method(**{"name": trainer, "trainer": trainer, "config": path, **rest})


def plan(
    protocol: Protocol, methods: Sequence[Method], root: Path, output: Path, opts: Sequence[str]
) -> list[Job]:
    """The jobs of an experiment.

    Args:
        protocol: says on what is trained and tested.
        methods: the rows of its tables.
        root: folder of the data sets.
        output: folder of all runs.
        opts: KEY VALUE pairs for all of them; they win.

    Raises:
        UserError: something in it cannot be run; nothing is written.
    """
    jobs: dict[Path, dict[Path, Run]] = {}
    planner = _Planner(protocol, root, output, opts)
    for dataset in protocol.datasets:
        for shots in protocol.shots:
            for method in methods:
                for seed in protocol.seeds if method.trained else protocol.seeds[:1]:
                    for run in planner.runs(method, dataset, shots, seed):
                        runs = jobs.setdefault(run.model or run.folder, {})
                        if run.reported or run.folder not in runs:
                            runs[run.folder] = run
    return [_job(list(runs.values())) for runs in jobs.values()]


@dataclass
class _Planner:
    protocol: Protocol
    root: Path
    output: Path
    opts: Sequence[str]

    def runs(self, method: Method, dataset: str, shots: int, seed: int) -> Iterator[Run]:
        """The runs of a cell; a method that differs at test alone has no training of its own."""
        common = method, dataset, shots, seed
        if not method.trained:
            for part in (self.protocol.train, *self.protocol.tests):
                yield from self._tests(part, *common, trained=None)
            return
        base = self._run(self.protocol.train, *common, dataset, tested=False)
        yield replace(base, reported=not method.at_test)
        if method.at_test:
            yield from self._tests(self.protocol.train, *common, trained=base)
        for part in self.protocol.tests:
            yield from self._tests(part, *common, trained=base)

    def _tests(
        self, part: Part, method: Method, group: str, shots: int, seed: int, trained: Run | None
    ) -> Iterator[Run]:
        for dataset in part.datasets or [group]:
            flags = ["--eval-only"]
            if trained is not None:
                flags += ["--model-dir", str(trained.folder)]
                if trained.settings["TEST.FINAL_MODEL"] == "last_step":
                    flags += ["--load-epoch", str(trained.settings["OPTIM.MAX_EPOCH"])]
            yield self._run(
                part, method, group, shots, seed, dataset, True, flags, trained and trained.folder
            )

    def _run(
        self,
        part: Part,
        method: Method,
        group: str,
        shots: int,
        seed: int,
        dataset: str,
        tested: bool,
        flags: Sequence[str] = (),
        model: Path | None = None,
    ) -> Run:
        settings = {"DATASET.SUBSAMPLE_CLASSES": part.classes, "DATASET.NUM_SHOTS": shots}
        settings |= {**method.settings, **method.of_dataset.get(group, {})}
        if tested:
            settings |= method.at_test
        keys = [word for key, value in settings.items() for word in (key, str(value))]
        words = [
            *("--root", str(self.root), "--trainer", method.trainer, "--seed", str(seed)),
            *("--dataset-config-file", str(find(CONFIGS / "datasets", dataset, "data set"))),
            *("--config-file", str(method.config)),
        ]
        cfg = train.setup_cfg(train.build_parser().parse_args([*words, *keys, *self.opts]))
        places = {
            "dataset": dataset,
            "shots": shots,
            "trainer": method.trainer,
            "config": method.config.stem + method.variant(tested),
            "seed": seed,
            **_context(cfg),
        }
        folder = self.output / part.folder.format(**places)
        argv = [*words, "--output-dir", str(folder), *flags, *keys, *self.opts]
        _check(cfg, folder, training=not flags)
        return Run(
            method,
            group,
            dataset,
            part.score.format(**places),
            shots,
            seed,
            tuple(argv),
            folder,
            model,
            settings={key: _as_in_yaml(value) for key, value in flattened(cfg)},
        )


def _as_in_yaml(value: Any) -> Any:
    """A value as a run's config.yaml has it."""
    return [*map(_as_in_yaml, value)] if isinstance(value, (list, tuple)) else value


def _job(runs: list[Run]) -> Job:
    first = runs[0]
    if not first.trains or not issubclass(TRAINER_REGISTRY.get(first.method.trainer), TwoStages):
        return Job(runs)
    if any(first.settings[f"{_NODE}.{key}"] != value for key, value in _NOT_SHARED.items()):
        return Job(runs)
    return Job(runs, repr([first.settings[key] for key in STAGE_ONE]))


_NODE = "TRAINER.ANCHOROPT"
_NOT_SHARED = {"ANCHOR": LEARNED, "ANCHOR_WEIGHTS": "", "ANCHOR_CE_WEIGHT": 0.0}
"""Another value than these, and no stage 1 is run, or one of the run's own."""


def _check(cfg: CfgNode, folder: Path, training: bool) -> None:
    """Find what train.py would find wrong with a run, before any is begun."""
    cfg.defrost()
    cfg.OUTPUT_DIR = str(folder)
    cfg.freeze()
    train.check(cfg, Namespace(eval_only=not training, no_train=False, model_dir=""))
    if issubclass(TRAINER_REGISTRY.get(cfg.TRAINER.NAME), TwoStages):
        AnchorOPTConfig.from_cfg(cfg)


def _context(cfg: CfgNode) -> dict[str, Any]:
    """What public folders tell of the context."""
    node = getattr(TRAINER_REGISTRY.get(cfg.TRAINER.NAME), "node", "")
    host = cfg.TRAINER.get(node, {})
    return {
        "n_ctx": cfg.TRAINER.ANCHOROPT.N_CTX or host.get("N_CTX", 0),
        "csc": host.get("CSC", False),
        "ctp": host.get("CLASS_TOKEN_POSITION", "end"),
    }

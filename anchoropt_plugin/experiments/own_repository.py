"""A user's own repository: its unchanged train.py is run, with AnchorOPT from this package.

Nothing is known of such a ``train.py`` but its command line, which is CoOp's, and that it builds
its trainer with ``dassl.engine.build_trainer``. So the configuration of a run is asked of the
script: it runs until it builds the trainer. A finished run is known by what it was given: the
words of its command line and the content of its yaml files, which are recorded before it starts.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import runpy
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

from ..config.check import as_in_yaml, flattened
from ..config.merge import literal, read_yaml
from ..config.same_run import FREE
from ..errors import UserError, nearest
from ..files.atomic import write_text
from ..files.predictions import PREDICTIONS
from ..files.readers import read_text
from ..files.run_events import RESULTS, read_results
from ..process.command_line import KEY
from ..training.trainer_registry import settings_in_force
from ..training.two_stages import SUFFIX
from .facts import FACTS
from .files import ASSETS
from .fork_server import in_fork
from .logs import logged_results
from .repository import Repository, Value

_A_SEED = "97"
"""A seed that no train.py sets by itself."""
GIVEN = "given.json"
"""In a run's folder: the words and the yaml files that the run was given."""
NAMED_AT_MOST = 3
"""The number of differing settings that a message names."""
_FILES = ("--dataset-config-file", "--config-file")


@dataclass(frozen=True)
class OwnRepository(Repository):
    """A folder with a ``train.py`` whose command line is CoOp's.

    Attributes:
        folder: the folder, where the runs start.
        data_sets: the yaml files of data sets that the user has named, by their stems. Others are
            looked for in ``configs/datasets``, then among those of this package.
    """

    folder: Path
    data_sets: tuple[tuple[str, Path], ...] = ()
    _asked: dict[Any, dict[str, Any]] = field(default_factory=dict, compare=False, repr=False)

    def trainer_config(self, host: str, name: str) -> Path:
        path = existing(self.folder, name)
        if path is None:
            path = self.folder / "configs" / "trainers" / host / f"{name}.yaml"
        if not path.is_file():
            raise UserError(f"there is no config file {name}, here or in {self.folder}")
        return path

    def dataset_config(self, name: str) -> Path:
        folders = (self.folder / "configs" / "datasets", ASSETS / "datasets")
        known = {path.stem: path for at in reversed(folders) for path in at.glob("*.yaml")}
        known |= dict(self.data_sets)
        if name not in known:
            raise UserError(
                f"unknown data set {name!r}{nearest(name, known)}: choose from "
                f"{', '.join(known)}, or give its yaml file (--dataset-config)"
            )
        return known[name]

    def settings(self, words: Sequence[str], pairs: Sequence[str]) -> dict[str, Any]:
        at = words.index("--seed") if "--seed" in words else len(words)
        seed = list(words[at : at + 2])
        # Once for all seeds but 0, which is no seed in CoOp's train.py.
        asked = ["--seed", seed[1] if seed[1] == "0" else _A_SEED] if seed else []
        key = (*words[:at], *asked, *words[at + 2 :], *pairs)
        if key not in self._asked:
            found = in_fork(self, _asked_settings, self, list(key))
            given = [*pairs, "SEED", asked[1]] if asked else pairs
            _check_taken(found, dict(zip(given[::2], given[1::2], strict=True)))
            self._asked[key] = found
        return {**self._asked[key], **({"SEED": int(seed[1])} if seed else {})}

    def node(self, trainer: str) -> str:
        return trainer.removesuffix(SUFFIX).upper()

    def is_two_stages(self, trainer: str) -> bool:
        return trainer.endswith(SUFFIX)

    def check(self, argv: Sequence[str], folder: Path) -> None:
        if "--eval-only" in argv or not any(folder.glob("*/checkpoint")):
            return
        there, here = _recorded(folder), _given(argv)
        if there != here:
            what = (
                f"with other settings: {_changes(there, here)}" if there else "of another command"
            )
            raise UserError(f"{folder} holds a run {what}: give another --output-dir")

    def run(self, argv: Sequence[str], folder: Path) -> int:
        folder.mkdir(parents=True, exist_ok=True)
        for name in (FACTS, RESULTS, PREDICTIONS):
            (folder / name).unlink(missing_ok=True)
        write_text(folder / GIVEN, _given(argv))
        return self._main(argv)

    def is_recorded(self, argv: Sequence[str], folder: Path, settings: Mapping[str, Any]) -> bool:
        return (folder / FACTS).is_file() and _recorded(folder) == _given(argv)

    def results(self, folder: Path, training: bool) -> tuple[dict[str, Any], Path] | None:
        results = read_results(folder)
        if results:  # of this package's runtime; a Dassl of their own only prints
            return (results, folder / RESULTS) if results["after_training"] == training else None
        return logged_results(folder, training)

    def with_trainer(self, argv: Sequence[str], use: Callable[[Any], Value]) -> Value:
        engine: Any = importlib.import_module("dassl.engine")
        build = engine.build_trainer
        return self._reached(argv, lambda cfg: use(build(cfg)))

    def _reached(self, argv: Sequence[str], use: Callable[[Any], Value]) -> Value:
        """Run ``train.py`` until it builds its trainer; return ``use(cfg)`` of its configuration.

        Raises:
            UserError: the script ends before; the message is the last line that it prints.
        """
        errors = io.StringIO()

        def reach(cfg: Any, *_: Any, **__: Any) -> NoReturn:
            try:
                value = use(cfg)
            except Exception as error:
                raise _Reached(None, error) from error
            raise _Reached(value)

        with (
            tempfile.TemporaryDirectory() as folder,
            mock.patch("dassl.engine.build_trainer", reach),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(errors),
        ):
            try:
                status = self._main(["--output-dir", folder, *_without(argv, "--output-dir")])
            except _Reached as reached:
                if isinstance(reached.error, UserError):
                    raise reached.error from None
                if reached.error is not None:  # of a class that may not pass between processes
                    kind = type(reached.error).__name__
                    raise UserError(f"{kind}: {reached.error}") from reached.error
                return reached.value
        last = errors.getvalue().strip().splitlines()[-1:] or [f"exit status {status}"]
        raise UserError(
            f"{last[0].removeprefix('error: ')} ({self.folder / 'train.py'}, before it calls "
            "dassl.engine.build_trainer)"
        )

    def _main(self, argv: Sequence[str]) -> int:
        """Do what ``python -m anchoropt_plugin run train.py`` does in the folder."""
        os.chdir(self.folder)
        sys.path.insert(0, str(self.folder))
        with mock.patch.object(sys, "argv", ["anchoropt_plugin", "run", "train.py", *argv]):
            try:
                runpy.run_module("anchoropt_plugin", run_name="__main__", alter_sys=True)
            except SystemExit as end:
                return end.code if isinstance(end.code, int) else int(end.code is not None)
        return 0


class _Reached(BaseException):
    """Raised where the script builds its trainer; ``except Exception`` does not catch it."""

    def __init__(self, value: Any, error: Exception | None = None) -> None:
        super().__init__()
        self.value, self.error = value, error


def existing(folder: Path, name: str) -> Path | None:
    """Return a file that the user names, relative to the working directory or to ``folder``."""
    for path in (Path(name), folder / name):
        if path.is_file():
            return path.absolute()
    return None


def own_repository(folder: Path, data_sets: Sequence[str]) -> OwnRepository:
    """Return the repository in a folder, with the yaml files of data sets that the user names.

    Raises:
        UserError: there is no ``train.py`` or no such file, two files have the same name, or the
            folder is a clone of this project.
    """
    folder = folder.absolute()
    if not (folder / "train.py").is_file():
        raise UserError(f"--repository {folder} has no train.py: give the folder of your train.py")
    if (folder / "scripts" / "experiment_script.py").is_file():
        raise UserError(
            f"--repository {folder} is a clone of anchoropt-plugin: leave --repository out, and "
            "run its scripts/compare.py or scripts/ablate.py"
        )
    found: dict[str, Path] = {}
    for name in data_sets:
        path = existing(folder, name)
        if path is None:
            raise UserError(f"there is no data set file {name}, here or in {folder}")
        if path.stem in found:
            raise UserError(f"{found[path.stem]} and {path} have the same name: rename one")
        found[path.stem] = path
    return OwnRepository(folder, tuple(found.items()))


def _check_taken(found: Mapping[str, Any], given: Mapping[str, str]) -> None:
    """Check that a configuration has the values that its command line gives."""
    for key, word in given.items():
        taken = found.get(key, word)
        if as_in_yaml(literal(word, taken)) != taken and word != str(taken):
            raise UserError(
                f"train.py makes {key} {taken} of {word}, so the runs would not be what their "
                "rows and columns say: give another value, or let train.py or the trainer take it"
            )


def _asked_settings(repository: OwnRepository, argv: Sequence[str]) -> dict[str, Any]:
    def settings(cfg: Any) -> dict[str, Any]:
        return {key: as_in_yaml(value) for key, value in flattened(settings_in_force(cfg))}

    return repository._reached(argv, settings)


def _without(argv: Sequence[str], flag: str) -> list[str]:
    at = argv.index(flag) if flag in argv else len(argv)
    return [*argv[:at], *argv[at + 2 :]]


def _given(argv: Sequence[str]) -> str:
    """Return what a run is given, as text: its words, and the content of its yaml files.

    Folders, and keys that change no result, are left out.
    """
    at = next((at for at, word in enumerate(argv) if KEY.fullmatch(word)), len(argv))
    words, pairs, files = list(argv[:at]), argv[at:], {}
    for flag in _FILES:
        path = Path(words[words.index(flag) + 1])
        files[flag] = _content(path, path.stat().st_mtime_ns)
    for flag in (*_FILES, "--root", "--output-dir", "--model-dir"):
        words = _without(words, flag)
    binding = [
        [key, value] for key, value in zip(pairs[::2], pairs[1::2], strict=True) if key not in FREE
    ]
    given = {"words": words, "settings": binding, "files": files}
    return json.dumps(given, indent=1, sort_keys=True, default=str)


def _changes(there: str, here: str) -> str:
    """Return the first settings that differ between two texts of ``_given``, in words."""

    def settings(text: str) -> dict[str, Any]:
        given = json.loads(text)
        of_files = (pair for content in given["files"].values() for pair in flattened(content))
        return {**dict(of_files), **dict(given["settings"])}

    was, now = settings(there), settings(here)
    keys = [key for key in {**now, **was} if now.get(key) != was.get(key)]
    named = (
        f"{key} was {was.get(key, 'not given')}, now {now.get(key, 'not given')}" for key in keys
    )
    return "; ".join(islice(named, NAMED_AT_MOST)) or f"see {GIVEN} there"


@lru_cache(maxsize=10_000)
def _content(path: Path, changed: int) -> dict[str, Any]:
    """Return the content of a yaml file; the cache reads it again after it ``changed``."""
    return read_yaml(path)


def _recorded(folder: Path) -> str:
    """Return what the last run in a folder was given; empty if there is no record."""
    path = folder / GIVEN
    return read_text(path) if path.is_file() else ""

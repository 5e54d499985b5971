"""What a repository is to an experiment: its files, its trainers, and its train.py."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

Value = TypeVar("Value")


class Repository(ABC):
    """A folder with a ``train.py`` whose command line is CoOp's.

    Attributes:
        folder: the folder.
        preload: the modules that the fork server imports before it forks the processes of runs.
        has_zero_shot: whether its trainer ``ZeroshotCLIP`` is a row of the tables.
    """

    folder: Path
    preload: tuple[str, ...] = ()
    has_zero_shot: bool = False

    @abstractmethod
    def trainer_config(self, host: str, name: str) -> Path:
        """Return the yaml file of a host that the user calls ``name``.

        Raises:
            UserError: there is no such host or no such file.
        """

    @abstractmethod
    def dataset_config(self, name: str) -> Path:
        """Return the yaml file of a data set.

        Raises:
            UserError: there is no such file.
        """

    @abstractmethod
    def settings(self, words: Sequence[str], pairs: Sequence[str]) -> dict[str, Any]:
        """Return all keys of the configuration of a command line, with their values.

        Args:
            words: the flags.
            pairs: the KEY VALUE pairs behind the flags.

        Raises:
            UserError: ``train.py`` refuses the command line.
        """

    @abstractmethod
    def node(self, trainer: str) -> str:
        """Return the name of a trainer's section in ``TRAINER``; empty if it is unknown."""

    @abstractmethod
    def is_two_stages(self, trainer: str) -> bool:
        """Tell whether a trainer has AnchorOPT."""

    @abstractmethod
    def check(self, argv: Sequence[str], folder: Path) -> None:
        """Check a run, before any run is started.

        Args:
            argv: the words after ``python train.py``.
            folder: the output folder.

        Raises:
            UserError: ``train.py`` would refuse the run, or the folder has another run.
        """

    @abstractmethod
    def run(self, argv: Sequence[str], folder: Path) -> int:
        """Run ``train.py`` in this process, record what it was given, and return its exit status.

        The process has computed nothing before.
        """

    @abstractmethod
    def is_recorded(self, argv: Sequence[str], folder: Path, settings: Mapping[str, Any]) -> bool:
        """Tell whether the last run in an output folder was given the same."""

    @abstractmethod
    def results(self, folder: Path, training: bool) -> tuple[dict[str, Any], Path] | None:
        """Return the results of a finished run and the file they are read from; else None."""

    @abstractmethod
    def with_trainer(self, argv: Sequence[str], use: Callable[[Any], Value]) -> Value:
        """Build the trainer of a run in this process, writing nothing, and return ``use(trainer)``.

        Raises:
            UserError: the trainer cannot be built.
        """

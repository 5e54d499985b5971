"""The inventory of the fifteen public data sets: state, missing files, download links."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from dassl.data.datasets import DATASET_REGISTRY, DatasetBase

from ..errors import UserError
from ..files.images import DamagedImages, check_images
from .downloads import DOWNLOADS, Download
from .public_sets import where_to_get
from .table import TABLE, PublicSet


@dataclass
class Finding:
    """The state of one data set.

    Attributes:
        name: the data set's ``DATASET.NAME``.
        row: the data set's row in the table, or None for any other data set.
        missing: the downloads that are missing.
        exists: whether the data set's folder exists.
        fault: the reason why the data set cannot be used, in one line, or "".
        n_classes: the number of classes.
        sizes: the number of images for training, validation and test; 0 for a part that repeats
            another one.
        opened: the number of opened images.
        broken: one line for each image that cannot be read.
        notes: what the data set itself says, such as which files are not used.
    """

    name: str
    row: PublicSet | None = None
    missing: list[Download] = field(default_factory=list)
    exists: bool = True
    fault: str = ""
    n_classes: int = 0
    sizes: tuple[int, int, int] = (0, 0, 0)
    opened: int = 0
    broken: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def state(self) -> str:
        """The state in one word.

        ``complete``, ``damaged`` (broken images), ``incomplete`` (not all classes), ``unusable`` or
        ``missing``.
        """
        if self.fault:
            return "unusable" if self.exists else "missing"
        if self.broken:
            return "damaged"
        is_whole = self.row is None or self.n_classes == self.row.n_classes
        return "complete" if is_whole else "incomplete"


def inventory(root: str | Path, sample: int = 20, progress: bool = False) -> list[Finding]:
    """Check every data set of the table: read its split, and open some of its images.

    Every image of a split must exist. Nothing is written.

    Args:
        root: the folder of the data sets.
        sample: the number of images to open of each data set, evenly spread over it.
        progress: whether to show a progress bar on stderr.

    Raises:
        UserError: a root that is not a folder, or the folder of a single data set.
    """
    root = Path(root).expanduser().absolute()
    if not root.is_dir():
        raise UserError(f"--root {root} is not a folder: give the folder of the data sets")
    folders = [row.folder for row in TABLE]
    if root.name in folders and not any((root / folder).is_dir() for folder in folders):
        raise UserError(f"--root {root} is the folder of one data set: give {root.parent}")
    console = Console(stderr=True)
    rows = track(TABLE, "Checking", console=console, disable=not progress, transient=True)
    return [check_data_set(row, root, sample) for row in rows]


def check_data_set(row: PublicSet, root: Path, sample: int) -> Finding:
    """Check one data set of the table in ``root``, and return its state."""
    cfg = SimpleNamespace(
        SEED=0,
        DATASET=SimpleNamespace(
            NAME=row.name, ROOT=str(root), NUM_SHOTS=-1, SUBSAMPLE_CLASSES="all"
        ),
    )
    return check_configured(cfg, sample)


def check_configured(cfg: Any, sample: int) -> Finding:
    """Check the data set of a configuration, and return its state.

    Of a user's own images all are opened, not only ``sample``.
    """
    name = cfg.DATASET.NAME
    row = next((row for row in TABLE if row.name == name), None)
    root = Path(cfg.DATASET.ROOT).expanduser().absolute()
    folder = root / row.folder if row else root
    absent = list(_absent(folder, DOWNLOADS[name])) if row else []
    finding = Finding(name, row, exists=folder.is_dir())
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            dataset = DATASET_REGISTRY.get(name)(cfg)
    except DamagedImages as error:
        finding.opened, finding.broken = error.opened, error.faults
        return finding
    except (UserError, OSError) as error:
        finding.missing = absent
        if row and (folder / row.split_file).is_file():
            finding.missing = [item for item in absent if not _is_annotation(item, row)]
        finding.fault = str(error).removesuffix(where_to_get(root))
        return finding
    finding.notes = [line for line in said.getvalue().splitlines() if line.startswith("Note: ")]
    if row:
        finding.missing = [item for item in absent if row.split_file in item.paths]
    finding.n_classes = dataset.num_classes
    finding.sizes = (
        0 if getattr(dataset, "test_only", False) else len(dataset.train_x),
        0 if getattr(dataset, "val_is_test", False) else len(dataset.val or ()),
        len(dataset.test or ()),
    )
    paths = _paths(dataset)
    if getattr(dataset, "are_own", False):  # all were opened when the data set was built
        finding.opened = len(paths)
        return finding
    paths = _spread(paths, sample)
    finding.opened = len(paths)
    try:
        check_images(paths)
    except DamagedImages as error:
        finding.broken = error.faults
    return finding


def show(findings: Sequence[Finding], console: Console | None = None) -> None:
    """Print a table of the findings, and then what to do for each incomplete data set."""
    console = console or Console()
    table = Table("data set", "state")
    for name in ("classes", "train", "val", "test", "opened"):
        table.add_column(name, justify="right")
    for finding in findings:
        numbers = (finding.n_classes, *finding.sizes, finding.opened)
        table.add_row(finding.name, finding.state, *(f"{n:,}" if n else "" for n in numbers))
    console.print(table)
    for finding in findings:
        lines = _advice(finding)
        if lines:
            text = "\n  ".join(lines)
            console.print(
                f"\n{finding.name}: {text}", markup=False, highlight=False, soft_wrap=True
            )


def _advice(finding: Finding) -> list[str]:
    row = finding.row
    split_file = row.split_file if row else ""
    lines = [*filter(None, [finding.fault])]
    if finding.broken:
        lines += [f"{len(finding.broken)} of {finding.opened} opened images cannot be read"]
    elif finding.missing and not finding.fault:
        lines += [f"{split_file} is missing, so every seed divides the images differently"]
    lines += [*finding.broken, *finding.notes]
    for item in finding.missing:
        notes = [item.note] if item.note else []
        if row and split_file and _is_annotation(item, row):
            notes.append(f"not needed with {split_file}")
        note = f" ({'; '.join(notes)})" if notes else ""
        paths = ", ".join(item.paths)
        lines.append(f"{paths} from {item.url}{note}")
    return lines


def _absent(folder: Path, downloads: Iterable[Download]) -> Iterator[Download]:
    for item in downloads:
        paths = tuple(path for path in item.paths if not (folder / path).exists())
        if paths:
            yield replace(item, paths=paths)


def _is_annotation(item: Download, row: PublicSet) -> bool:
    return any(PurePosixPath(file).is_relative_to(item.paths[0]) for file in row.annotations)


def _paths(dataset: DatasetBase) -> list[str]:
    parts = (dataset.train_x, dataset.val or (), dataset.test or ())
    return list(dict.fromkeys(item.impath for part in parts for item in part))


def _spread(paths: Sequence[str], sample: int) -> list[str]:
    count = min(sample, len(paths))
    return [paths[number * len(paths) // count] for number in range(count)]

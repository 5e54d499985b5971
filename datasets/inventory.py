"""The inventory of the fifteen public data sets: state, missing files, download links."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from types import SimpleNamespace

from rich.console import Console
from rich.progress import track
from rich.table import Table

from anchoropt_plugin.errors import UserError
from anchoropt_plugin.files.readers import read_image
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase

from .downloads import DOWNLOADS, Download
from .public_sets import where_to_get
from .table import TABLE, PublicSet


@dataclass
class Finding:
    """The state of one data set.

    Attributes:
        row: the data set's row in the table.
        missing: the downloads that are missing.
        exists: whether the data set's folder exists.
        fault: the reason why the data set cannot be used, in one line, or "".
        n_classes: the number of classes.
        sizes: the number of images for training, validation and test; 0 for a part that repeats
            another one.
        opened: the number of opened images.
        broken: one line for each image that cannot be read.
    """

    row: PublicSet
    missing: list[Download]
    exists: bool = True
    fault: str = ""
    n_classes: int = 0
    sizes: tuple[int, int, int] = (0, 0, 0)
    opened: int = 0
    broken: list[str] = field(default_factory=list)

    @property
    def state(self) -> str:
        """One of ``complete``, ``damaged`` (broken images), ``unusable`` and ``missing``."""
        if self.fault:
            return "unusable" if self.exists else "missing"
        return "damaged" if self.broken else "complete"


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
    """Check one data set in ``root``, and return its state."""
    cfg = SimpleNamespace(
        SEED=0,
        DATASET=SimpleNamespace(ROOT=str(root), NUM_SHOTS=-1, SUBSAMPLE_CLASSES="all"),
    )
    folder = root / row.folder
    absent = list(_absent(folder, DOWNLOADS[row.name]))
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            dataset = DATASET_REGISTRY.get(row.name)(cfg)
    except (UserError, OSError) as error:
        if (folder / row.split_file).is_file():
            absent = [item for item in absent if not _is_annotation(item, row)]
        fault = str(error).removesuffix(where_to_get(root))
        return Finding(row, absent, folder.is_dir(), fault)
    finding = Finding(row, [item for item in absent if row.split_file in item.paths])
    finding.n_classes = dataset.num_classes
    finding.sizes = (
        0 if row.test_only else len(dataset.train_x),
        0 if row.val_is_test else len(dataset.val),
        len(dataset.test),
    )
    for path in _spread(dataset, sample):
        finding.opened += 1
        try:
            read_image(path)
        except UserError as error:
            finding.broken.append(str(error))
    return finding


def show(findings: Sequence[Finding], console: Console | None = None) -> None:
    """Print a table of the findings, and then what to do for each incomplete data set."""
    console = console or Console()
    table = Table("data set", "state")
    for name in ("classes", "train", "val", "test", "opened"):
        table.add_column(name, justify="right")
    for finding in findings:
        numbers = (finding.n_classes, *finding.sizes, finding.opened)
        table.add_row(finding.row.name, finding.state, *(f"{n:,}" if n else "" for n in numbers))
    console.print(table)
    for finding in findings:
        if finding.fault or finding.missing or finding.broken:
            lines = "\n  ".join(_advice(finding))
            console.print(
                f"\n{finding.row.name}: {lines}", markup=False, highlight=False, soft_wrap=True
            )


def _advice(finding: Finding) -> list[str]:
    row = finding.row
    broken = f"{len(finding.broken)} of {finding.opened} opened images cannot be read"
    divided = f"{row.split_file} is missing, so every seed divides the images differently"
    heading = finding.fault or (broken if finding.broken else divided)
    lines = [heading, *finding.broken]
    for item in finding.missing:
        notes = [item.note] if item.note else []
        if row.split_file and _is_annotation(item, row):
            notes.append(f"not needed with {row.split_file}")
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


def _spread(dataset: DatasetBase, sample: int) -> list[str]:
    parts = (dataset.train_x, dataset.val or (), dataset.test or ())
    paths = list(dict.fromkeys(item.impath for part in parts for item in part))
    count = min(sample, len(paths))
    return [paths[number * len(paths) // count] for number in range(count)]

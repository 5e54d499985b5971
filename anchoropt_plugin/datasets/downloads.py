"""Download links of the public data sets, read from ``downloads.yaml``; no link is tried here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..config.merge import read_yaml


@dataclass(frozen=True)
class Download:
    """Files or folders of a data set, and their source.

    Attributes:
        paths: the unpacked files or folders, relative to the data set's folder.
        url: the source.
        note: a remark, such as that the link is dead.
    """

    paths: tuple[str, ...]
    url: str
    note: str = ""


DOWNLOADS = {
    name: tuple(Download(**{**row, "paths": tuple(row["paths"])}) for row in rows)
    for name, rows in read_yaml(Path(__file__).with_suffix(".yaml")).items()
}
"""The downloads of each ``DATASET.NAME``."""

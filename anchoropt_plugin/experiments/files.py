"""Yaml files: find them by name, read them into dataclasses."""

from __future__ import annotations

from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

from ..config.merge import read_yaml
from ..errors import UserError, nearest

ASSETS = Path(__file__).resolve().parents[1] / "assets"
"""The files that are part of the package."""

Record = TypeVar("Record")


def find(folder: Path, name: str, what: str) -> Path:
    """Return the yaml file called ``name`` in a folder.

    Raises:
        UserError: there is no such file; the message names the nearest one.
    """
    path = folder / f"{name}.yaml"
    if Path(name).name == name and path.is_file():
        return path
    known = sorted(file.stem for file in folder.glob("*.yaml"))
    raise UserError(
        f"unknown {what} {name!r}{nearest(name, known)}: choose from {', '.join(known) or 'none'}"
    )


def read_as(kind: type[Record], path: Path) -> Record:
    """Read a yaml file into a dataclass whose fields are its keys.

    Raises:
        UserError: a key is unknown or missing.
    """
    return made_of(kind, read_yaml(path), str(path))


def made_of(kind: type[Record], values: Any, where: str) -> Record:
    """Return a yaml section as a dataclass; lists become tuples.

    Raises:
        UserError: the value is no section, or a key is unknown or missing.
    """
    if not isinstance(values, dict):
        raise UserError(f"{where}: {values!r} is not a section of `key: value` lines")
    names = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    for key in values:
        if key not in names:
            raise UserError(f"{where}: unknown key {key!r}{nearest(str(key), names)}")
    for name, field in names.items():
        optional = field.default is not MISSING or field.default_factory is not MISSING
        if name not in values and not optional:
            raise UserError(f"{where}: the key {name!r} is missing")
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})

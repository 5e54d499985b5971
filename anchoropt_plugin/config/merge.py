"""Merge files and KEY VALUE pairs into a configuration tree, with errors that say what to do."""

from __future__ import annotations

import math
import reprlib
import sys
from ast import literal_eval
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from ..errors import UserError, nearest


def merge_file(cfg: CfgNode, path: str | Path) -> None:
    """Merge the yaml file at ``path`` into ``cfg``.

    Raises:
        UserError: a file that :func:`read_yaml` or :func:`merge_dict` refuses.
    """
    merge_dict(cfg, read_yaml(path), source=str(path))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return the ``KEY: value`` lines of a yaml file as a dict.

    Raises:
        UserError: an unreadable file, invalid yaml, or yaml that is not a dict.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        hint = nearest(Path(path).name, [file.name for file in Path(path).parent.glob("*.y*ml")])
        raise UserError(f"cannot open the config file {path}: {error.strerror}{hint}") from error
    except RecursionError as error:
        raise UserError(f"{path}: not a config file: nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not a text file"
        raise UserError(f"{path}{line}: not valid yaml: {problem}") from error
    _check_size(values, str(path))
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: a config file holds `KEY: value` lines, not a {_kind(values)}")
    return values


_LARGEST = 100_000
"""The most values a config file may hold; an ``*alias`` counts each time it is used."""


def _check_size(values: Any, source: str) -> None:
    """Check that repeated aliases do not expand to a huge or endless configuration."""
    sizes: dict[int, float] = {}

    def size(value: Any) -> float:
        if not isinstance(value, (dict, list, tuple, set)):
            return 1
        if id(value) not in sizes:
            sizes[id(value)] = math.inf  # the answer for a value that contains itself
            parts = [*value, *value.values()] if isinstance(value, dict) else list(value)
            sizes[id(value)] = 1 + sum(map(size, parts))
        return sizes[id(value)]

    if size(values) > _LARGEST:
        raise UserError(f"{source}: too large: yaml aliases expand it to over {_LARGEST} values")


def merge_list(cfg: CfgNode, pairs: Sequence[Any]) -> None:
    """Merge ``["OPTIM.LR", 1, "TRAINER.COOP.N_CTX", "4", ...]`` into ``cfg``.

    Raises:
        UserError: a key without a value, a flag, or a pair that :func:`merge_dict` refuses.
    """
    for word in pairs:
        if isinstance(word, str) and word.startswith("--"):
            raise UserError(f"{word} comes after KEY VALUE pairs: give flags first")
    if len(pairs) % 2:
        raise UserError(f"the config key {pairs[-1]!r} has no value; give KEY VALUE pairs")
    for full_key, value in zip(pairs[::2], pairs[1::2], strict=True):
        tree: Any = value
        for part in reversed(str(full_key).split(".")):
            tree = {part: tree}
        merge_dict(cfg, tree, source="command line")


def merge_dict(cfg: CfgNode, values: Mapping[str, Any], source: str, prefix: str = "") -> None:
    """Merge a nested dict into ``cfg``; a string that is a Python literal is parsed as such.

    Float keys accept an int. Tuple keys accept a list, and list keys a tuple.

    Args:
        cfg: the configuration to change.
        values: new values by key.
        source: the origin of the values, for messages.
        prefix: the dotted path of ``cfg`` in the whole configuration, for messages.

    Raises:
        UserError: an unknown key, or a value of another type than the default.

    >>> cfg = CfgNode({"OPTIM": {"LR": 0.1}})
    >>> merge_dict(cfg, {"OPTIM": {"LR": 1}}, source="example")
    >>> cfg.OPTIM.LR
    1.0
    """
    for key, value in values.items():
        full_key = f"{prefix}{key}"
        if key not in cfg:
            hint = nearest(full_key, [f"{prefix}{name}" for name in cfg])
            raise UserError(f"{source}: unknown config key {full_key}{hint}")
        old = cfg[key]
        if isinstance(old, CfgNode):
            if not isinstance(value, Mapping):
                raise UserError(f"{source}: {full_key} is a section; give one of its keys")
            merge_dict(old, value, source, prefix=f"{full_key}.")
        else:
            cfg[key] = _coerced(_literal(value), old, f"{source}: {full_key}")


def _literal(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # the last two: deep nesting
        return value


def _coerced(value: Any, old: Any, where: str) -> Any:
    if isinstance(value, Mapping):
        raise UserError(f"{where} takes {_a(old)}, not a section")
    if old is None or type(value) is type(old):
        return value
    if type(value) is int and isinstance(old, float) and abs(value) <= sys.float_info.max:
        return float(value)
    if isinstance(value, (list, tuple)) and isinstance(old, (list, tuple)):
        return type(old)(value)
    raise UserError(f"{where} takes {_a(old)}, but {reprlib.repr(value)} is a {_kind(value)}")


def _a(value: Any) -> str:
    kind = _kind(value)
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"


def _kind(value: Any) -> str:
    return type(value).__name__

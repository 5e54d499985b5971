"""Merge files and KEY VALUE pairs into a configuration tree, with errors that say what to do."""

from __future__ import annotations

import copy
import math
import reprlib
import sys
from ast import literal_eval
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from ..errors import UserError, nearest
from .check import flattened


def merge_file(cfg: CfgNode, path: str | Path, unused: Collection[str] = ()) -> None:
    """Merge the yaml file at ``path`` into ``cfg``; for ``unused`` see :func:`merge_dict`.

    Raises:
        UserError: a file that :func:`read_yaml` or :func:`merge_dict` refuses.
    """
    merge_dict(cfg, read_yaml(path), source=str(path), unused=unused)


class _EachKeyOnce(yaml.SafeLoader):
    """The safe loader, which refuses a key that is there twice: yaml would keep the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                problem = f"the key {key.value} is there twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return the ``KEY: value`` lines of a yaml file as a dict.

    Raises:
        UserError: an unreadable file, invalid yaml, or yaml that is not a dict.
    """
    try:
        values = copy.deepcopy(_parsed(Path(path).read_text(encoding="utf-8")))
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


@lru_cache(maxsize=32)
def _parsed(text: str) -> Any:
    """Return the value of a yaml text; experiments read the same few files for each of their runs.

    The C loader would be faster, but ends the process if yaml is nested too deeply.
    """
    loader = _EachKeyOnce(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


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


def merge_list(cfg: CfgNode, pairs: Sequence[Any], unused: Collection[str] = ()) -> None:
    """Merge ``["OPTIM.LR", 1, "TRAINER.COOP.N_CTX", "4", ...]`` into ``cfg``.

    For ``unused`` see :func:`merge_dict`.

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
        merge_dict(cfg, tree, source="command line", unused=unused)


def merge_dict(
    cfg: CfgNode, values: Mapping[str, Any], source: str, unused: Collection[str] = ()
) -> None:
    """Merge a nested dict into ``cfg``; a string that is a Python literal is parsed as such.

    Float keys accept an int. Tuple keys accept a list, and list keys a tuple. A string key accepts
    False, which public code writes for no text, as an empty string.

    Args:
        cfg: the configuration to change.
        values: new values by key.
        source: the origin of the values, for messages.
        unused: dotted keys that may be given although ``cfg`` lacks them; they change nothing.

    Raises:
        UserError: an unknown key, or a value of another type than the default.

    >>> cfg = CfgNode({"OPTIM": {"LR": 0.1}})
    >>> merge_dict(cfg, {"OPTIM": {"LR": 1}}, source="example")
    >>> cfg.OPTIM.LR
    1.0
    """
    _Merge(cfg, source, unused).into(cfg, values, prefix="")


class _Merge:
    """A merge into the configuration ``whole``."""

    def __init__(self, whole: CfgNode, source: str, unused: Collection[str]) -> None:
        self.whole, self.source, self.unused = whole, source, unused

    def into(self, cfg: CfgNode, values: Mapping[str, Any], prefix: str) -> None:
        """Merge ``values`` into the section ``cfg``, whose keys start with ``prefix``."""
        for key, value in values.items():
            full_key = f"{prefix}{key}"
            old = cfg.get(key)
            if key not in cfg:
                beside = [f"{prefix}{name}" for name in cfg if _may_be_meant(cfg[name], value)]
                self.check_unused(full_key, value, beside)
            elif not isinstance(old, CfgNode):
                cfg[key] = _coerced(literal(value, old), old, f"{self.source}: {full_key}")
            elif isinstance(value, Mapping):
                self.into(old, value, prefix=f"{full_key}.")
            else:
                raise UserError(f"{self.source}: {full_key} is a section; give one of its keys")

    def check_unused(self, full_key: str, value: Any, beside: Sequence[str]) -> None:
        """Check that all keys of ``value`` are in ``unused``; a hint names one of ``beside``."""
        keys = [full_key]
        if isinstance(value, Mapping):
            keys = [key for key, _ in flattened(value, [full_key])] or keys
        unknown = next((key for key in keys if key not in self.unused), None)
        if unknown is None:
            return
        if full_key not in {_section(key) for key in self.unused}:
            unknown = full_key
        moved = [key for key, _ in flattened(self.whole) if _name(key) == _name(unknown)]
        alike = [key for key in self.unused if key.count(".") == unknown.count(".")]
        hint = nearest(unknown, moved if len(moved) == 1 else [*beside, *alike])
        raise UserError(f"{self.source}: unknown config key {unknown}{hint}")


def _may_be_meant(known: Any, value: Any) -> bool:
    """Tell whether ``value`` may be for what is known: a section, if any, has one of its keys."""
    if isinstance(value, Mapping) and value:
        return isinstance(known, CfgNode) and not known.keys().isdisjoint(value)
    return True


def _section(key: str) -> str:
    return key.rpartition(".")[0]


def _name(key: str) -> str:
    return key.rpartition(".")[2]


def literal(value: Any, old: Any) -> Any:
    """Return the value that a word of a command line stands for, given the key's ``old`` value."""
    if not isinstance(value, str):
        return value
    try:
        found = literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # the last two: deep nesting
        return value
    # A template may be "{}".
    return value if isinstance(old, str) and isinstance(found, dict) else found


def _coerced(value: Any, old: Any, where: str) -> Any:
    if isinstance(value, Mapping):
        raise UserError(f"{where} takes {_a(old)}, not a section")
    if old is None or type(value) is type(old):
        return value
    if value is False and isinstance(old, str):
        return ""
    if type(value) is int and isinstance(old, float) and abs(value) <= sys.float_info.max:
        return float(value)
    if isinstance(value, (list, tuple)) and isinstance(old, (list, tuple)):
        return type(old)(value)
    if isinstance(value, str) and isinstance(old, (list, tuple)):
        raise UserError(f"{where} takes a list, not one word: write \"['{value}']\"")
    raise UserError(f"{where} takes {_a(old)}, but {reprlib.repr(value)} is a {_kind(value)}")


def _a(value: Any) -> str:
    kind = _kind(value)
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"


def _kind(value: Any) -> str:
    return type(value).__name__


def merge_or_add(cfg: CfgNode, values: Mapping[str, Any], source: str) -> None:
    """Merge a nested dict into ``cfg``; new keys are added.

    Raises:
        UserError: a value of another type than the one in ``cfg``.
    """
    for key, value in values.items():
        if key not in cfg:
            cfg[key] = _node(value, f"{source}: {key}") if isinstance(value, Mapping) else value
        elif isinstance(cfg[key], CfgNode) and isinstance(value, Mapping):
            merge_or_add(cfg[key], value, source)
        else:
            merge_dict(cfg, {key: value}, source)


def _node(value: Mapping[str, Any], where: str) -> CfgNode:
    try:
        return CfgNode(dict(value))
    except AssertionError as error:  # yacs raises it for keys and values that it refuses
        raise UserError(f"{where} is not a section of a config: {error}") from error

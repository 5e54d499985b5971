"""The factors of an ablation: short names of config keys, grids of values, changed methods."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from ..config.merge import read_yaml
from ..errors import UserError, nearest
from .files import ASSETS, made_of
from .plan import Method

Grid = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Factor:
    """A config key that an ablation varies.

    Attributes:
        key: the whole key.
        at: ``train``, or ``test`` if the key only changes the test of a trained model.
        host: the host's own key, which applies while the value of ``key`` is 0.
    """

    key: str
    at: str = "train"
    host: str = ""


@cache
def factors() -> dict[str, Factor]:
    """Return the factors of ``assets/factors.yaml`` by their short names."""
    path = ASSETS / "factors.yaml"
    return {name: made_of(Factor, v, f"{path}: {name}") for name, v in read_yaml(path).items()}


def factor_of(name: str) -> Factor:
    """Return the factor of a short name or of a config key.

    Raises:
        UserError: the name is neither.
    """
    if name in factors():
        return factors()[name]
    if "." not in name:
        known = factors()
        raise UserError(
            f"unknown factor {name!r}{nearest(name, known)}: give one of {', '.join(known)}, or a "
            "config key such as OPTIM.LR"
        )
    return Factor(name)


def parse_grid(words: Sequence[str]) -> dict[str, list[str]]:
    """Read ``KEY=v1,v2`` words.

    Raises:
        UserError: a word has another form, or a name is given twice.

    >>> parse_grid(["position=soft,identity"])
    {'position': ['soft', 'identity']}
    """
    grid = {}
    for word in words:
        name, sign, values = word.partition("=")
        if not sign or not all(values.split(",")):
            raise UserError(f"--grid {word} does not have the form KEY=v1,v2")
        if name in grid:
            raise UserError(f"--grid {name} is given twice: give all values in one {name}=v1,v2")
        grid[name] = values.split(",")
    return grid


def varied(
    default: Method,
    grid: Grid,
    one_at_a_time: bool,
    dataset: str,
    together: Sequence[Mapping[str, Any]] = (),
    opts: Sequence[str] = (),
) -> list[Method]:
    """Return the default method with its values of all factors, then the changed ones, each once.

    Args:
        default: the method that the changed methods are compared with.
        grid: the values of each factor.
        one_at_a_time: vary each factor alone; else take all combinations.
        dataset: the data set whose configuration gives the default values.
        together: further changes, each of several factors at once.
        opts: KEY VALUE pairs for all runs, on which the default values may depend.

    Raises:
        UserError: a factor is unknown, or two factors have the same key.
    """
    names = dict.fromkeys([*grid, *(name for change in together for name in change)])
    _check_keys_differ(names)
    defaults = _values_of(default, list(names), dataset, opts)
    default = replace(default, defaults=defaults)
    if one_at_a_time:
        changes = [{name: value} for name, values in grid.items() for value in values]
    else:
        combinations = itertools.product(*grid.values())
        changes = [dict(zip(grid, values, strict=True)) for values in combinations]
    differing = [
        {name: value for name, value in change.items() if not _equal(value, defaults[name])}
        for change in [*changes, *together]
    ]
    once: list[dict[str, Any]] = []
    for change in differing:
        if change and not any(_are_equal(change, other) for other in once):
            once.append(change)
    return [default, *(_changed(default, change) for change in once)]


def _check_keys_differ(names: Iterable[str]) -> None:
    first: dict[str, str] = {}
    for name in names:
        key = factor_of(name).key
        other = first.setdefault(key, name)
        if other != name:
            raise UserError(f"{other} and {name} vary the same key, {key}: leave one of them out")


def _changed(default: Method, change: Mapping[str, Any]) -> Method:
    def part(at: str) -> tuple[dict[str, Any], dict[str, Any]]:
        names = {n: v for n, v in change.items() if factor_of(n).at == at}
        return names, {factor_of(n).key: v for n, v in names.items()}

    (in_training, settings), (at_test, settings_at_test) = part("train"), part("test")
    return replace(
        default,
        name=", ".join(f"{_short(n, default.defaults)}={value}" for n, value in change.items()),
        settings={**default.settings, **settings},
        at_test=settings_at_test,
        reference=default.name,
        factors=in_training,
        factors_at_test=at_test,
        defaults={},
    )


def _short(name: str, names: Iterable[str]) -> str:
    """Return the last part of a config key, or the whole key if two of ``names`` have that part.

    >>> _short("OPTIM.LR", ["OPTIM.LR", "SEED"]), _short("OPTIM.LR", ["OPTIM.LR", "MY.LR"])
    ('LR', 'OPTIM.LR')
    """
    last = [other.rpartition(".")[2] for other in names]
    part = name.rpartition(".")[2]
    return part if last.count(part) == 1 else name


def _values_of(
    method: Method, names: Sequence[str], dataset: str, opts: Sequence[str]
) -> dict[str, Any]:
    words = [
        *("--trainer", method.trainer),  # a preset depends on it
        *("--dataset-config-file", str(method.repository.dataset_config(dataset))),
        *("--config-file", str(method.config)),
    ]
    pairs = [word for pair in method.settings.items() for word in map(str, pair)]
    settings = method.repository.settings(words, [*pairs, *opts])
    node = method.repository.node(method.trainer)
    values = {}
    for name in names:
        factor = factor_of(name)
        if factor.key not in settings:
            raise UserError(f"unknown config key {factor.key}{nearest(factor.key, settings)}")
        values[name] = settings[factor.key]
        if factor.host and not values[name]:
            values[name] = settings.get(f"TRAINER.{node}.{factor.host}", 0)
    return values


def _are_equal(change: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    names = change.keys()
    return names == other.keys() and all(_equal(change[name], other[name]) for name in names)


def _equal(value: Any, default: Any) -> bool:
    numbers = number(value), number(default)
    return str(value) == str(default) or (None not in numbers and numbers[0] == numbers[1])


def number(value: Any) -> float | None:
    """Return the value of a factor as a number; None for a word."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None

"""A registry of classes by name, so that a config file can choose one."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection
from typing import Any, TypeVar

from yacs.config import CfgNode

from ...errors import UserError, nearest

T = TypeVar("T", bound=Callable[..., Any])


class Registry:
    """Classes registered by name.

    >>> registry = Registry("TRAINER")
    >>> @registry.register()
    ... class CoOp: ...
    >>> registry.get("CoOp") is CoOp
    True
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._obj_map: dict[str, Any] = {}

    def register(self, obj: T | None = None, force: bool = False) -> Any:
        """Register ``obj`` under its ``__name__``; without ``obj``, return a decorator.

        Args:
            obj: the class or function to register.
            force: whether to replace an object of the same name.

        Raises:
            KeyError: a registered name, without ``force``.
        """
        if obj is None:
            return lambda decorated: self.register(decorated, force)
        name = obj.__name__
        if name in self._obj_map and not force:
            raise KeyError(f"{name!r} is already registered in {self._name}")
        self._obj_map[name] = obj
        return obj

    def get(self, name: str) -> Any:
        """Return the object registered as ``name``.

        Raises:
            KeyError: an unknown name.
        """
        if name not in self._obj_map:
            raise KeyError(f"{name!r} is not registered in {self._name}")
        return self._obj_map[name]

    def registered_names(self) -> list[str]:
        """Return all names, in order of registration."""
        return list(self._obj_map)

    def chosen(self, cfg: CfgNode, key: str) -> Any:
        """Return the object that ``cfg`` names under ``key``, such as ``"TRAINER.NAME"``.

        Raises:
            UserError: an unknown name; the message suggests the nearest one.
        """
        name = operator.attrgetter(key)(cfg)
        check_availability(name, self.registered_names(), key)
        if cfg.VERBOSE:
            print(f"Loading {self._name.lower()}: {name}")
        return self.get(name)


def check_availability(requested: str, available: Collection[str], key: str = "the name") -> None:
    """Check that ``requested`` is one of ``available``.

    Args:
        requested: the name to check.
        available: the valid names.
        key: the config key or flag with the name, for the message.

    Raises:
        UserError: an unknown name; the message lists the valid names and suggests the nearest.
    """
    if requested not in available:
        fault = f"is {requested!r}{nearest(requested, available)}" if requested else "is not given"
        raise UserError(
            f"{key} {fault}; "
            f"available: {', '.join(sorted(available)) or 'none (is the module imported?)'}"
        )

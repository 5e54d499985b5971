"""Classes by name, so that a config file can choose one."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, TypeVar

from ...errors import UserError, nearest

T = TypeVar("T", bound=Callable[..., Any])


class Registry:
    """Named objects.

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
        """Register ``obj`` under its ``__name__``; without it, return a decorator that does.

        Raises:
            KeyError: The name is taken, and ``force`` is not set.
        """
        if obj is None:
            return lambda decorated: self.register(decorated, force)
        name = obj.__name__
        if name in self._obj_map and not force:
            raise KeyError(f"{name!r} is registered in {self._name} already")
        self._obj_map[name] = obj
        return obj

    def get(self, name: str) -> Any:
        """Return the object registered as ``name``.

        Raises:
            KeyError: There is none.
        """
        if name not in self._obj_map:
            raise KeyError(f"{name!r} is not registered in {self._name}")
        return self._obj_map[name]

    def registered_names(self) -> list[str]:
        """Return all names, in order of registration."""
        return list(self._obj_map)


def check_availability(requested: str, available: Collection[str], key: str = "the name") -> None:
    """Check that ``requested`` is one of ``available``.

    Raises:
        UserError: It is not; the message names ``key``, what there is, and the nearest name.
    """
    if requested not in available:
        what = f"is {requested!r}{nearest(requested, available)}" if requested else "is not given"
        raise UserError(
            f"{key} {what}; "
            f"available: {', '.join(sorted(available)) or 'none (is its module imported?)'}"
        )

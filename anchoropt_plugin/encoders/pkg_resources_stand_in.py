"""A stand-in for ``pkg_resources``, which OpenAI's clip imports and setuptools 82 removed."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from typing import Any, NoReturn

import packaging.version  # clip reads packaging.version


@contextlib.contextmanager
def offered_pkg_resources() -> Iterator[None]:
    """Let ``from pkg_resources import packaging`` work, all that clip and its copies import of it.

    An installed ``pkg_resources`` is used; that of setuptools 70 lacks ``packaging`` and gets it.
    Otherwise a stand-in is imported. It has nothing else: other names raise ``ImportError``, which
    other packages expect where ``pkg_resources`` is not installed. Afterwards the stand-in is gone:
    some programs take a ``pkg_resources`` in ``sys.modules`` for an installed one.
    """
    stand_in: Any = None
    try:
        import pkg_resources
    except ImportError:
        stand_in = module_from_spec(ModuleSpec("pkg_resources", None))
        stand_in.__getattr__ = _missing
        sys.modules["pkg_resources"] = pkg_resources = stand_in
    if "packaging" not in vars(pkg_resources):
        pkg_resources.packaging = packaging
    try:
        yield
    finally:
        if stand_in is not None and sys.modules.get("pkg_resources") is stand_in:
            del sys.modules["pkg_resources"]


def _missing(name: str) -> NoReturn:
    if name.startswith("__"):
        raise AttributeError(name)
    raise ImportError(
        f"pkg_resources is not installed, and its stand-in has no {name}: "
        "pip install 'setuptools<81'",
        name="pkg_resources",
    )

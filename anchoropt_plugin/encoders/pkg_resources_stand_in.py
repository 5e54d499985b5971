"""A stand-in for ``pkg_resources``, which OpenAI's clip imports and setuptools 82 removed."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from typing import Any, NoReturn

import packaging.version  # clip reads packaging.version


def offer_pkg_resources() -> None:
    """Make ``from pkg_resources import packaging`` work, all that clip and its copies import of it.

    An installed ``pkg_resources`` is used; that of setuptools 70 lacks ``packaging`` and gets it.
    Otherwise a stand-in is imported from now on. It has nothing else: other names raise
    ``ImportError``, which other packages expect where ``pkg_resources`` is not installed.
    """
    try:
        import pkg_resources
    except ImportError:
        stand_in: Any = module_from_spec(ModuleSpec("pkg_resources", None))
        stand_in.__getattr__ = _missing
        sys.modules["pkg_resources"] = pkg_resources = stand_in
    if "packaging" not in vars(pkg_resources):
        pkg_resources.packaging = packaging


def _missing(name: str) -> NoReturn:
    if name.startswith("__"):
        raise AttributeError(name)
    raise ImportError(
        f"pkg_resources is not installed, and its stand-in has no {name}: "
        "pip install 'setuptools<81'",
        name="pkg_resources",
    )

"""A runtime with Dassl's interface, which answers to ``import dassl`` if Dassl is not installed.

Its modules have the names of Dassl's: ``dassl.X`` *is* ``anchoropt_plugin.dassl_compat.X``. If
Dassl is installed, ``import dassl`` finds Dassl itself, repaired where newer versions of torch
break it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_ALIAS = "dassl"


class _AliasLoader(Loader):
    def exec_module(self, module: ModuleType) -> None:
        # The import system reads sys.modules again after this call, so the importer gets the
        # module set here: one module under two names, never two copies of a class.
        name = module.__name__
        sys.modules[name] = importlib.import_module(__name__ + name.removeprefix(_ALIAS))


class _AliasFinder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] != _ALIAS or (fullname == _ALIAS and is_installed()):
            return None
        real = importlib.util.find_spec(__name__ + fullname.removeprefix(_ALIAS))
        if real is None:
            return None
        is_package = real.submodule_search_locations is not None
        return ModuleSpec(fullname, _AliasLoader(), is_package=is_package)


def is_installed() -> bool:
    """Return whether Dassl itself can be imported."""
    others = (finder for finder in sys.meta_path if not isinstance(finder, _AliasFinder))
    specs = (finder.find_spec(_ALIAS, None) for finder in others)
    # A spec without an origin is a mere folder of that name, such as an unpacked archive.
    return any(spec is not None and spec.origin is not None for spec in specs)


def install() -> None:
    """Make ``import dassl`` work: with this runtime, or with an installed Dassl, repaired.

    A second call changes nothing.
    """
    if any(isinstance(finder, _AliasFinder) for finder in sys.meta_path):
        return
    if is_installed():
        from .repairs import repair_dassl

        repair_dassl()
    else:
        # First in the list: the ordinary finder would find dassl.X in this package's folder and
        # load each module a second time.
        sys.meta_path.insert(0, _AliasFinder())

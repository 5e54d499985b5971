"""``X_AnchorOPT`` of every registered trainer ``X``, made when it is asked for.

For repositories that never heard of AnchorOPT: no decorator has to be written into them.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from ..errors import UserError, nearest
from .decorators import anchoropt
from .two_stages import SUFFIX, TwoStages

log = logging.getLogger("anchoropt_plugin")


@contextlib.contextmanager
def two_stages_on_demand() -> Iterator[None]:
    """While active, the registry of trainers answers to ``X_AnchorOPT`` as well.

    Works with Dassl's registry and with this package's.

    >>> from dassl.engine import TRAINER_REGISTRY, TrainerX
    >>> @TRAINER_REGISTRY.register()
    ... class Undecorated(TrainerX): ...
    >>> with two_stages_on_demand():
    ...     "Undecorated_AnchorOPT" in TRAINER_REGISTRY.registered_names()
    True
    """
    from dassl.engine import TRAINER_REGISTRY

    own_get, own_names = TRAINER_REGISTRY.get, TRAINER_REGISTRY.registered_names

    def get(name: str) -> Any:
        if name not in own_names() and name.endswith(SUFFIX):
            anchoropt(own_get(_host_of(name, own_names())))
        trainer = own_get(name)
        if name.endswith(SUFFIX) and not issubclass(trainer, TwoStages):
            log.warning("%s is this repository's own: it runs, and not the plug-in's", name)
        return trainer

    # On the instance: what others hold is the registry itself.
    TRAINER_REGISTRY.get = get
    TRAINER_REGISTRY.registered_names = lambda: _Names(own_names())
    try:
        yield
    finally:
        del TRAINER_REGISTRY.get, TRAINER_REGISTRY.registered_names


class _Names(list[str]):
    """The registered names, and those that can be made of them.

    Who looks for ``X_AnchorOPT`` among them without there being an ``X`` gets a ``UserError``.
    """

    def __init__(self, registered: list[str]) -> None:
        plain = [name for name in registered if not name.endswith(SUFFIX)]
        made = [name + SUFFIX for name in plain if name + SUFFIX not in registered]
        super().__init__([*registered, *made])
        self._registered = registered

    def __contains__(self, name: object) -> bool:
        known = super().__contains__(name)
        if not known and isinstance(name, str) and name.endswith(SUFFIX):
            _host_of(name, self._registered)
        return known


def _host_of(name: str, registered: list[str]) -> str:
    """The trainer that ``name`` is made of."""
    host = name.removesuffix(SUFFIX)
    hosts = [other for other in registered if not other.endswith(SUFFIX)]
    if host not in hosts:
        raise UserError(
            f"there is no trainer {host!r} to make {name} of{nearest(host, hosts)}; "
            f"registered: {', '.join(sorted(hosts)) or 'none (is its module imported?)'}"
        )
    return host

"""``X_AnchorOPT`` for every registered trainer ``X``, made on demand.

A repository that does not know AnchorOPT needs no decorator.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any
from unittest import mock

from ..errors import UserError, nearest
from .decorators import anchoropt
from .two_stages import SUFFIX, TwoStages

log = logging.getLogger("anchoropt_plugin")


@contextlib.contextmanager
def two_stages_on_demand() -> Iterator[None]:
    """Inside the context manager, the registry of trainers also knows every ``X_AnchorOPT``.

    Works with Dassl's registry and with the registry of this package.

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
            log.warning("this repository has its own %s: it runs, not the plug-in's", name)
        return trainer

    def registered_names() -> _Names:
        return _Names(own_names())

    # On the instance: others hold a reference to the registry.
    with mock.patch.multiple(TRAINER_REGISTRY, get=get, registered_names=registered_names):
        yield


def settings_in_force(cfg: Any) -> Any:
    """Return ``cfg`` with the settings of AnchorOPT that a run of its trainer has.

    Without AnchorOPT, or without a trainer of that name, this is ``cfg`` itself.
    """
    from dassl.engine import TRAINER_REGISTRY

    name = cfg.TRAINER.NAME
    is_known = name in list(TRAINER_REGISTRY.registered_names())  # by `run`: it tells what is wrong
    trainer: Any = TRAINER_REGISTRY.get(name) if is_known else object
    return trainer.anchoropt_in_force(cfg) if issubclass(trainer, TwoStages) else cfg


class _Names(list[str]):
    """The registered names, and the names that can be made from them.

    Looking for ``X_AnchorOPT`` raises ``UserError`` if there is no ``X``.
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
    """Return the name of the trainer that ``name`` extends."""
    host = name.removesuffix(SUFFIX)
    hosts = [other for other in registered if not other.endswith(SUFFIX)]
    if host.endswith(SUFFIX):
        raise UserError(f"{host} has AnchorOPT already: give the trainer's name without {SUFFIX}")
    if host not in hosts:
        raise UserError(
            f"there is no trainer {host!r} to make {name} from{nearest(host, hosts)}; "
            f"registered: {', '.join(sorted(hosts)) or 'none (is its module imported?)'}"
        )
    return host

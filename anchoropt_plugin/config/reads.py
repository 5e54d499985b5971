"""Which keys of a configuration a block of code reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from yacs.config import CfgNode

_SECTION = "_section"


@contextmanager
def reads(cfg: CfgNode) -> Iterator[set[str]]:
    """Collect the dotted keys that a block reads one by one, from ``cfg`` or a copy of it.

    What takes the whole configuration, to print or to record it, reads no key.

    >>> cfg = CfgNode({"OPTIM": {"LR": 0.1, "NAME": "sgd"}})
    >>> with reads(cfg) as found:
    ...     _ = cfg.clone().OPTIM.LR, str(cfg)
    >>> sorted(found)
    ['OPTIM', 'OPTIM.LR']
    """
    found: set[str] = set()
    _mark(cfg, "")

    def read(node: CfgNode, name: str) -> Any:
        found.add(f"{node.__dict__.get(_SECTION, '')}{name}")
        return dict.__getitem__(node, name)

    def get(node: CfgNode, name: str, default: Any = None) -> Any:
        return read(node, name) if name in node else default

    # yacs has no such methods of its own; its attributes are read with the first one.
    CfgNode.__getitem__, CfgNode.get = read, get
    try:
        yield found
    finally:
        del CfgNode.__getitem__, CfgNode.get


def _mark(node: CfgNode, section: str) -> None:
    """Note in each node where it is; copies have the note, too."""
    node.__dict__[_SECTION] = section
    for name, value in node.items():
        if isinstance(value, CfgNode):
            _mark(value, f"{section}{name}.")

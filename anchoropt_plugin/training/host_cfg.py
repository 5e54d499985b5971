"""The configuration with the settings in force, and as the host alone would get it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from yacs.config import CfgNode

from ..errors import UserError
from .settings import AnchorOPTConfig


def in_force(cfg: Any, settings: AnchorOPTConfig) -> Any:
    """Return a copy of ``cfg`` whose ``TRAINER.ANCHOROPT`` has the settings of a run.

    Its ``config.yaml`` then records them, and gives the same run as a ``--config-file``: keys in a
    file win over the arguments of ``@anchoropt`` and over a preset.
    """
    with _copy(cfg) as cfg:
        node = cfg.TRAINER.setdefault("ANCHOROPT", CfgNode())
        for name, value in asdict(settings).items():
            if value or name != "n_ctx":  # 0 keeps the host's number, maybe under the same key
                node[name.upper()] = value
    return cfg


def host_cfg(cfg: Any, name: str, node: str, n_ctx: int) -> Any:
    """Return a copy of ``cfg`` as the host alone would get it.

    Args:
        cfg: the configuration of the run.
        name: of the host; the host, its data sets and its CLIP may read ``TRAINER.NAME``.
        node: name of the host's node in ``cfg.TRAINER``.
        n_ctx: soft tokens of the host; 0 keeps its own number.
    """
    with _copy(cfg) as cfg:
        cfg.TRAINER.NAME = name
        if n_ctx:
            _set_soft_tokens(cfg, node, n_ctx)
    return cfg


@contextlib.contextmanager
def _copy(cfg: Any) -> Iterator[Any]:
    """Return a copy of ``cfg`` that a block may change; afterwards it is frozen if ``cfg`` is."""
    copy = cfg.clone()
    copy.defrost()
    yield copy
    if cfg.is_frozen():
        copy.freeze()


def _set_soft_tokens(cfg: Any, node: str, n_ctx: int) -> None:
    node = next((key for key in cfg.TRAINER if key.upper() == node.upper()), node)
    if "N_CTX" not in cfg.TRAINER.get(node, ()):
        raise UserError(
            f"TRAINER.ANCHOROPT.N_CTX: there is no TRAINER.{node}.N_CTX to set; set the host's "
            "own key for its soft tokens, or name its node with @anchoropt(node=...)"
        )
    cfg.TRAINER[node].N_CTX = n_ctx

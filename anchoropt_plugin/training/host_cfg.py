"""The configuration as the host alone would get it."""

from __future__ import annotations

from typing import Any

from ..errors import UserError


def host_cfg(cfg: Any, name: str, node: str, n_ctx: int) -> Any:
    """Return a copy of ``cfg`` as the host alone would get it.

    Args:
        cfg: the configuration of the run.
        name: of the host; the host, its data sets and its CLIP may read ``TRAINER.NAME``.
        node: name of the host's node in ``cfg.TRAINER``.
        n_ctx: soft tokens of the host; 0 keeps its own number.
    """
    is_frozen = cfg.is_frozen()
    cfg = cfg.clone()
    cfg.defrost()
    cfg.TRAINER.NAME = name
    if n_ctx:
        _set_soft_tokens(cfg, node, n_ctx)
    if is_frozen:
        cfg.freeze()
    return cfg


def _set_soft_tokens(cfg: Any, node: str, n_ctx: int) -> None:
    node = next((key for key in cfg.TRAINER if key.upper() == node.upper()), node)
    if "N_CTX" not in cfg.TRAINER.get(node, ()):
        raise UserError(
            f"TRAINER.ANCHOROPT.N_CTX: there is no TRAINER.{node}.N_CTX to set; set the host's "
            "own key for its soft tokens, or name its node with @anchoropt(node=...)"
        )
    cfg.TRAINER[node].N_CTX = n_ctx

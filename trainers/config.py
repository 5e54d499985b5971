"""The configuration keys of this repository, with their defaults: add a new host's keys here."""

from __future__ import annotations

from yacs.config import CfgNode

import anchoropt_plugin

HOST_KEYS = {
    "COOP": {  # also DePT's
        "N_CTX": 16,
        "CSC": False,
        "CTX_INIT": "",
        "PREC": "fp16",  # fp16, fp32 or amp
        "CLASS_TOKEN_POSITION": "end",  # end, middle or front
    },
    "COCOOP": {"N_CTX": 16, "CTX_INIT": "", "PREC": "fp16"},
    "MAPLE": {"N_CTX": 2, "CTX_INIT": "a photo of a", "PREC": "fp16", "PROMPT_DEPTH": 9},
    "LINEAR_PROBE": {"TYPE": "linear", "WEIGHT": 0.7, "TEST_TIME_FUSION": True},
    "FILM": {"LINEAR_PROBE": True},
    "ATPROMPT": {
        "USE_ATPROMPT": False,
        "N_ATT1": 4,
        "N_ATT2": 4,
        "N_ATT3": 4,
        "ATT_NUM": 0,
        "ATT1_TEXT": "none",
        "ATT2_TEXT": "none",
        "ATT3_TEXT": "none",
    },
}
"""The nodes of ``cfg.TRAINER``."""


def extend_cfg(cfg: CfgNode) -> None:
    """Add the keys of the data sets, the hosts and AnchorOPT to Dassl's default configuration.

    >>> from dassl.config import get_cfg_default
    >>> cfg = get_cfg_default()
    >>> extend_cfg(cfg)
    >>> cfg.TRAINER.MAPLE.PROMPT_DEPTH, cfg.TRAINER.ANCHOROPT.ANCHOR_LEN
    (9, 1)
    """
    for name, defaults in HOST_KEYS.items():
        cfg.TRAINER[name] = CfgNode(defaults)
    cfg.MODEL.BACKBONE.CONFIG = ""  # "openai" or a json file, if NAME is a bare file of weights
    cfg.OPTIM.LR_EXP = 6.5  # with STAGED_LR, DePT's NEW_LAYERS learn at LR * LR_EXP
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"  # all, base or new
    cfg.DATASET.CLASS_SPLIT = ""  # a named split into base and new; "": the data set's own
    cfg.DATASET.TEMPLATE = "a photo of a {}."  # the prompt of ZeroshotCLIP
    anchoropt_plugin.extend_cfg(cfg)

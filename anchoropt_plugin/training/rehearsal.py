"""A test of two images before stage 1: encoders that stage 2 cannot use are refused at once."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from ..errors import UserError
from ..process.randomness import random_state, restore_random_state

log = logging.getLogger("anchoropt_plugin")

IMAGES = 2


def rehearse(trainer: Any, inference: Callable[[Tensor], Any]) -> None:
    """Let a copy of a host's model classify two random images, and compute their l_a.

    Stage 1 may take hours, so an encoder that AnchorOPT refuses is refused before. The copy shares
    the host's weights; the host and all random numbers stay as they are.

    Args:
        trainer: a host with AnchorOPT.
        inference: the host's own ``model_inference``.

    Raises:
        UserError: hidden states of the text encoder change in an unknown way, or the image encoder
            has no features of the plain CLIP.
    """
    run, state, was_silent = trainer.anchoropt, random_state(), log.disabled
    weights = [*trainer.model.parameters(), *run.plain.clip.parameters()]
    shared: dict[int, Any] = {id(weight): weight for weight in weights}
    log.disabled = True  # stage 2 warns of the same
    try:
        model, run = copy.deepcopy((trainer.model, run), shared)
        images = torch.randn(IMAGES, 3, *trainer.cfg.INPUT.SIZE).to(trainer.device)
        with mock.patch.multiple(trainer, model=model.eval(), anchoropt=run), torch.no_grad():
            inference(images)
            run.check_prompts()
            if run.features.calls:
                run.logits()
    except UserError:
        raise
    except Exception:
        # The host's code may raise anything: some models cannot be copied, or tested before they
        # are trained. The first step of stage 2 checks the same.
        return
    finally:
        log.disabled = was_silent
        restore_random_state(state)

"""``Checkpoints``: what a trainer with AnchorOPT saves, loads, and compares with its folder."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import Tensor

from ..config.same_run import check_same_classes, check_same_model, check_same_run
from ..encoders.clip_models import words_of
from ..errors import UserError
from ..files.checkpoint_folder import CHILD
from ..method.anchors import AnchorTokens
from ..prompts.class_tensors import changed_class_tensors, of_other_classes
from . import run_record
from .released_files import anchors_file, is_released, renamed
from .stage_one import read_sources
from .stage_two import AnchorOPT

log = logging.getLogger("anchoropt_plugin")


class Checkpoints:
    """The part of ``X_AnchorOPT`` that reads and writes files, before the host X.

    Each method does AnchorOPT's part and calls the host's method.
    """

    anchoropt_host: type
    anchoropt_node: str
    anchoropt_cfg: Any
    anchoropt: AnchorOPT

    @property
    def recorded_cfg(self: Any) -> Any:
        """The configuration that ``config.yaml`` records; the host's own has other values."""
        return self.anchoropt_cfg

    def anchoropt_sources(self: Any) -> None:
        """Read the file of anchors or descriptions; a run to resume must have had the same."""
        run, cfg = self.anchoropt, self.anchoropt_cfg
        run.sources = read_sources(run.settings, run.tower, run.classes, cfg.DATASET.NAME)
        if run.settings.anchor_weights:
            file = anchors_file(run.settings.anchor_weights, cfg.DATASET.NAME)
            run_record.note_other_anchors(file, cfg.MODEL.BACKBONE.NAME, run.classes)
        for folder in filter(None, (cfg.RESUME, self.output_dir)):
            check_same_run(cfg, folder)
            check_same_classes(folder, run.classes)
            run_record.check_same_sources(Path(folder), run.sources)

    def save_model(self: Any, epoch: int, directory: str, *args: Any, **kwargs: Any) -> None:
        # Before the checkpoint, which would be tested by other rules without this file.
        Path(directory).mkdir(parents=True, exist_ok=True)
        run, cfg = self.anchoropt, self.anchoropt_cfg
        run_record.write_record(Path(directory), cfg, run.classes, run.settings, run.sources)
        super().save_model(epoch, directory, *args, **kwargs)  # type: ignore[misc]

    def load_model(self: Any, directory: str, epoch: int | None = None) -> None:
        run, trained = self.anchoropt, None
        if directory:
            trained = run_record.trained_classes(Path(directory), self.cfg, run.settings)
        if trained is not None:
            self.anchoropt_rule.trained_classes = frozenset(map(words_of, trained))
            if self._host_node().get("CSC") and trained != run.classes:
                raise UserError(
                    f"{directory} has one context for each of {len(trained)} other classes (CSC "
                    "True): such contexts fit the classes of their training alone, in its order"
                )
        run.position.is_loaded = False
        with (
            run.plain.unchanged(self._models.values()),
            changed_class_tensors(run.learner) as names,
        ):
            super().load_model(directory, epoch)  # type: ignore[misc]
        if names and trained != run.classes:
            raise of_other_classes(f"load_model of {self.anchoropt_host.__name__}", names)
        if directory:
            nodes = [self.anchoropt_node, *getattr(self, "further_nodes", ())]
            check_same_model(self.anchoropt_cfg, directory, type(self), nodes)
        if trained is not None and not run.position.is_loaded:
            raise UserError(
                f"load_model of {self.anchoropt_host.__name__} does not load the position logits "
                f"and anchors in {directory}: it must load everything of the prompt learner except "
                "the tokens and embeddings of the class names"
            )
        if directory and not run.position.is_loaded:
            log.warning(
                "%s was trained without AnchorOPT: its soft tokens are tested with an untrained "
                "position matrix and the anchors that stage 1 finds now; --trainer %s tests it as "
                "it was trained",
                directory,
                self.anchoropt_host.__name__,
            )
        run.condition()

    def _host_node(self: Any) -> Any:
        """Return the host's node in ``cfg.TRAINER``; some hosts have none."""
        names = (key for key in self.cfg.TRAINER if key.upper() == self.anchoropt_node.upper())
        return self.cfg.TRAINER.get(next(names, ""), {})

    def loadable(self: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what a host of this repository loads; it may be a file of the released code."""
        if is_released(state):
            state = self._from_released(state)
        result: dict[str, Tensor] = super().loadable(state)  # type: ignore[misc]
        return result

    def _from_released(self: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
        settings = self.anchoropt.settings
        run_record.check_trained_as_released(settings)
        models = (self._models[name].state_dict() for name in self.get_model_names())
        state = renamed(state, [name for own in models for name in own])
        if not any(name.endswith(f"{CHILD}.anchors") for name in state):
            if not settings.anchor_weights:
                raise UserError(
                    "a checkpoint of the released code, which holds no anchors: give the folder "
                    "anchor_weights of its run as TRAINER.ANCHOROPT.ANCHOR_WEIGHTS"
                )
            file = anchors_file(settings.anchor_weights, self.cfg.DATASET.NAME)
            logits = next(name for name in state if name.endswith(f"{CHILD}.logits"))
            state[f"{logits.removesuffix('logits')}anchors"] = AnchorTokens.load(file).values
            print(f"Anchors loaded from {file}: the checkpoint of the released code holds none")
        return state

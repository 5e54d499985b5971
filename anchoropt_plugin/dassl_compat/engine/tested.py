"""The test of a trainer: its loader, the outputs of its model, and what the run writes of it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from yacs.config import CfgNode

from ...config.check import flattened
from ...config.record import OF_TRAINING, recorded_settings
from ...config.same_run import FREE
from ...errors import UserError
from ...files.predictions import PREDICTIONS
from ...files.run_events import RESULTS, model_of_test, write_results
from ...files.training_images import images_of, images_per_class
from ...process import distributed
from ...process.late_checks import settle_all
from ...process.randomness import torch_state
from ..evaluation.label_check import LabelCheck
from ..evaluation.top_classes import TopClasses, paths_of
from ..saved_weights import CHANGED
from ..validation import check_split
from .base import TrainerBase

log = logging.getLogger("anchoropt_plugin")

OF_TEST = (
    *("TRAINER.NAME", "MODEL.BACKBONE.NAME", "DATASET.NAME", "DATASET.SUBSAMPLE_CLASSES"),
    *OF_TRAINING,
)
"""Keys that ``results.json`` records: a test may be written into the folder of another run."""
_SECTIONS = "DATASET.", "INPUT.", "MODEL.", "TEST.", "TRAINER."
"""Sections on whose keys a test depends: ``results.json`` has all that are not free."""


class Tested(TrainerBase):
    """A trainer that tests its model on a split of its data set."""

    cfg: CfgNode
    recorded_cfg: CfgNode
    device: torch.device
    output_dir: str
    model: Any
    evaluator: Any
    val_loader: Any
    test_loader: Any
    lab2cname: dict[int, str]
    is_trained: bool
    is_saved: bool
    loaded_from: str
    loaded_epoch: int | None
    samples_at_test = False
    """Whether a test is meant to draw random numbers."""
    _has_drawn = False
    _is_recorded = False

    @torch.no_grad()
    def test(self, split: str | None = None) -> float:
        """Evaluate on a split and print the results.

        Args:
            split: ``"val"`` or ``"test"``. None takes ``TEST.SPLIT`` and writes ``predictions.csv``
                and ``results.json``. A data set without a validation split is evaluated on its
                test split.

        Returns:
            The evaluator's first result, the accuracy in per cent.
        """
        self.set_model_mode("eval")
        self.evaluator.reset()
        is_final = split is None
        split, loader = self.split_and_loader(split or self.cfg.TEST.SPLIT)
        print(f"Evaluate on the *{split}* set")
        progress, top = Console(stderr=True), TopClasses()
        label_check = LabelCheck(type(self).__name__)
        for logits, labels, images in track(
            self._outputs(loader, label_check),
            "evaluate",
            total=len(loader),
            console=progress,
            transient=True,
            disable=not (sys.stderr.isatty() and distributed.is_main()),
        ):
            self.evaluator.process(logits, labels)
            if is_final:
                top.add(images, logits, labels)
        settle_all()
        label_check.settle()
        if self._has_drawn:
            log.warning(
                "%s draws random numbers in its test, which change with the seed: its modules that "
                "are not registered (register_model) stay in training mode, with their dropout; "
                "predict and export draw none",
                type(self).__name__,
            )
        if is_final:
            top.check_finite()
        results = self.evaluator.evaluate()
        for name, value in results.items():
            self.write_scalar(f"{split}/{name}", value, self.epoch)
        if is_final:
            self._record(split, results, top.write(self.output_dir, self.lab2cname))
        return next(iter(results.values()))

    def _record(self, split: str, results: Mapping[str, Any], predictions: str) -> None:
        """Write ``results.json``; ``predictions`` is the digest of ``predictions.csv``, if any."""
        test = {"split": split, "after_training": self.is_trained, **self._settings()}
        data_set = getattr(getattr(self, "dm", None), "dataset", None)  # users' own may differ
        if self.loaded_from:
            test["model"] = model_of_test(self.output_dir, self.loaded_from, self.loaded_epoch)
        test["images"] = images_of(data_set, split)
        if not self.is_saved:
            test[CHANGED] = True
            log.warning(
                "%s has changed its weights since the last checkpoint in %s: this test is of "
                "the changed ones, later tests and predict are of the checkpoint; call "
                "save_model after the change",
                type(self).__name__,
                self.output_dir,
            )
        if self.is_trained:
            test["images_per_class"] = images_per_class(data_set)
        counts = getattr(self.evaluator, "counts", {})  # users' evaluators may have none
        numbers = {name: float(value) for name, value in results.items()}
        further = self.further_results()
        if predictions:
            test["predictions"] = predictions
        write_results(self.output_dir, {**test, **counts, **numbers, **further})
        self._is_recorded = True

    def _test_recorded(self, test: Callable[..., float], *args: Any, **named: Any) -> float:
        """Call ``test``; the results of a host's own loop are written, too.

        Its images are known by their number alone, so it has no ``predictions.csv``.
        """
        self._is_recorded, found = False, {}
        evaluate = self.evaluator.evaluate

        def noted() -> Any:
            found["results"] = results = evaluate()
            return results

        with mock.patch.object(self.evaluator, "evaluate", noted):
            value = test(*args, **named)
        is_final = not (args or named.get("split"))
        if is_final and not self._is_recorded and isinstance(found.get("results"), Mapping):
            self._record_own(found["results"])
        return value

    def _record_own(self, results: Mapping[str, Any]) -> None:
        split, _ = self.split_and_loader(self.cfg.TEST.SPLIT)
        images = getattr(getattr(getattr(self, "dm", None), "dataset", None), split, None)
        counted = getattr(self.evaluator, "counts", {}).get("total")
        if images is None or counted != len(images):
            log.warning(
                "the test of %s gives its evaluator %s images, and the %s set has %s: no %s is "
                "written, so compare and report do not take this run",
                type(self).__name__,
                counted,
                split,
                "none" if images is None else len(images),
                RESULTS,
            )
        elif distributed.is_main():
            Path(self.output_dir, PREDICTIONS).unlink(missing_ok=True)  # of an earlier test
            self._record(split, results, "")

    def split_and_loader(self, split: str) -> tuple[str, Any]:
        """Return the name and the loader of a split: of the test if there is no validation.

        Raises:
            UserError: ``TEST.SPLIT`` asks for a validation set that does not exist.
        """
        if split == "val" and self.val_loader is not None:
            return split, self.val_loader
        check_split(self)
        return "test", self.test_loader

    def _settings(self) -> dict[str, dict[str, Any]]:
        """Return the settings of a test, and those of the training of its model, if known."""
        if self.loaded_from:
            trained = recorded_settings(self.loaded_from)
        else:
            trained = dict(flattened(self.recorded_cfg)) if self.is_trained else {}
        training = {key: trained[key] for key in OF_TEST if key in trained}
        own = {
            key: value
            for key, value in flattened(self.recorded_cfg)
            if key in OF_TEST or (key.startswith(_SECTIONS) and key not in FREE)
        }
        own["TRAINER.NAME"] = type(self).__name__
        own |= {key: training[key] for key in OF_TRAINING if key in training}
        return {"settings": own, "training": training}

    def further_results(self) -> dict[str, Any]:
        """Return further entries of ``results.json``: values that JSON can hold."""
        return {}

    def _outputs(
        self, loader: Any, label_check: LabelCheck
    ) -> Iterator[tuple[Tensor, Tensor, list[str]]]:
        """Yield logits, labels and paths of each batch.

        Several processes share the work, and get all.
        """

        def parsed(batch: Any) -> tuple[Tensor, Tensor]:
            images, labels = self.parse_batch_test(batch)
            label_check.add(batch, (images, labels))
            return images, labels

        if not (distributed.is_started() and hasattr(loader, "in_turns")):
            for batch in loader:
                images, labels = parsed(batch)
                yield self._logits(images), labels, paths_of(batch, len(labels))
            return
        for batch in loader.in_turns():
            output = None
            if batch is not None:
                images, labels = parsed(batch)
                logits, paths = self._logits(images), paths_of(batch, len(labels))
                output = logits.cpu(), labels.cpu(), paths
            yield from (other for other in distributed.gathered(output) if other is not None)

    def _logits(self, images: Tensor) -> Tensor:
        device = torch.device(self.device)  # a host may set a text
        before = torch_state(device)
        logits: Any = self.model_inference(images)
        if not (self.samples_at_test or torch.equal(before, torch_state(device))):
            self._has_drawn = True
        if not isinstance(logits, Tensor):
            raise UserError(
                f"in a test, model_inference of {type(self).__name__} returns a "
                f"{type(logits).__name__}, not logits (images, classes); only registered models "
                "(register_model) are in eval mode then: ask one of them for `training`"
            )
        return logits

    def model_inference(self, input: Tensor) -> Tensor:
        """Return the logits (B, C) of images (B, 3, H, W)."""
        return self.model(input)

    def parse_batch_test(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the images and the labels of a batch, on the device."""
        images = batch["img"].to(self.device, non_blocking=True)
        return images, batch["label"].to(self.device, non_blocking=True)

"""``TwoStages``: both stages of AnchorOPT around a Dassl trainer, whose code stays unchanged."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from ..config.record import write_record
from ..dassl_compat.finite_checks import check_weights, checked_step, expect_finite
from ..encoders.clip_models import words_of
from ..errors import UserError
from ..files.run_events import append_event
from ..method.anchors import PUBLISHED_FILE, AnchorTokens
from ..method.objective import PromptLoss
from ..method.position import AnchorPositionModule
from ..process import distributed
from ..process.data_parallel import refuse_data_parallel, without_data_parallel
from ..process.folder_lock import locked_folder
from ..process.gradients import trained_parameters
from ..process.late_checks import settle_all
from .batch import Batch, views
from .checkpoints import Checkpoints
from .host_cfg import host_cfg, in_force
from .host_parts import HostParts
from .optimizer_group import own_learning_rate
from .rehearsal import rehearse
from .run_record import write_history
from .settings import AnchorOPTConfig
from .stage_one import find_anchors
from .stage_two import AnchorOPT
from .step_losses import StepLosses
from .test_loop import TestLoop
from .test_rule import TestRule

log = logging.getLogger("anchoropt_plugin")

SUFFIX = "_AnchorOPT"


class TwoStages(Checkpoints):
    """The first base class of ``X_AnchorOPT``, before the host X: stage 1, then stage 2.

    Each method does AnchorOPT's part and calls the host's method. All state is in the last three
    attributes; the decorator sets the others.
    """

    anchoropt_host: type
    anchoropt_learner: str
    anchoropt_node: str
    anchoropt_arguments: dict[str, Any]
    anchoropt: AnchorOPT
    anchoropt_rule: TestRule
    anchoropt_loop: TestLoop | None = None  # in a test

    def __init__(self, cfg: Any) -> None:
        settings, given = self._anchoropt_settings(cfg), cfg.TRAINER.get("ANCHOROPT", {})
        own = given.get("N_CTX")
        if own and not settings.n_ctx:
            log.warning("TRAINER.ANCHOROPT.N_CTX %s is a key of this repository: not used", own)
        self.anchoropt_cfg = cfg = in_force(cfg, settings)
        node = cfg.TRAINER.ANCHOROPT
        told = [f"{key} {value}" for key, value in node.items() if given.get(key) != value]
        if told:  # a train.py has printed its configuration by now
            print(f"TRAINER.ANCHOROPT, by @anchoropt or PRESET: {', '.join(told)}")
        cfg = host_cfg(cfg, self.anchoropt_host.__name__, self.anchoropt_node, settings.n_ctx)
        super().__init__(cfg)  # type: ignore[call-arg]

    @property
    def samples_at_test(self) -> bool:
        """Whether a test draws its position matrices."""
        return self.anchoropt.settings.sample_at_eval

    @classmethod
    def anchoropt_in_force(cls, cfg: Any) -> Any:
        """Return ``cfg`` with the settings that a run has: see ``host_cfg.in_force``."""
        return in_force(cfg, cls._anchoropt_settings(cfg))

    @classmethod
    def _anchoropt_settings(cls, cfg: Any) -> AnchorOPTConfig:
        return AnchorOPTConfig.from_cfg(
            cfg, host=cls.anchoropt_host.__name__, **cls.anchoropt_arguments
        )

    def build_model(self: Any) -> None:
        settings = self._anchoropt_settings(self.cfg)
        name, has_weights = self.anchoropt_host.__name__, bool(self.cfg.MODEL.INIT_WEIGHTS)
        parts = HostParts(name, self.anchoropt_learner, settings, has_weights)
        if distributed.is_launched() and not distributed.is_started():
            raise UserError(
                "the installed Dassl does not support torchrun: run python instead, or uninstall "
                "Dassl; this package has a runtime of its own"
            )
        with parts.watching():
            super().build_model()  # type: ignore[misc]
        if settings.n_ctx:
            self._check_soft_tokens(settings.n_ctx, parts)
        parts.choose_trained()
        self.model = without_data_parallel(self.model)
        refuse_data_parallel(self.model, name)
        trained = self._anchoropt_trained()
        self.anchoropt = AnchorOPT(settings, parts, self.dm.dataset.classnames, trained)
        subsample = self.cfg.DATASET.get("SUBSAMPLE_CLASSES", "all")
        self.anchoropt_rule = TestRule(self.anchoropt, subsample)
        self.anchoropt.features.watch(self.model, parts.text_encoders)
        for module in _position_modules(self):
            # MODEL.INIT_WEIGHTS may have brought anchors, but the settings decide on them: stage 1.
            module.anchors.zero_()
        for name in self.get_model_names():
            optimizer, scheduler = self._optims[name], self._scheds[name]
            if optimizer is not None and settings.position_lr:
                own = list(parts.position.parameters())
                own_learning_rate(optimizer, scheduler, own, settings.position_lr)

    def _check_soft_tokens(self: Any, wanted: int, parts: HostParts) -> None:
        """Check that the host's learner has the soft tokens of N_CTX: CTX_INIT may overrule it."""
        ctx = getattr(parts.learner, "ctx", None)
        found = ctx.shape[-2] if isinstance(ctx, Tensor) else parts.position.n_ctx
        if found != wanted:
            words = self._host_node().get("CTX_INIT")
            why = f", as many as its CTX_INIT {words!r}: give CTX_INIT '' or" if words else ": give"
            raise UserError(
                f"TRAINER.ANCHOROPT.N_CTX is {wanted}, but the prompt learner of "
                f"{self.anchoropt_host.__name__} has {found} soft tokens{why} N_CTX {found}"
            )

    def _anchoropt_trained(self: Any) -> Sequence[nn.Parameter]:
        """Return all parameters that the host's optimisers train."""
        optimizers = [x for x in vars(self).values() if isinstance(x, torch.optim.Optimizer)]
        return trained_parameters([*optimizers, *self._optims.values()])

    def anchoropt_stage_one(self: Any) -> None:
        """Run stage 1, unless a checkpoint held anchors; the plain host's checkpoints hold none."""
        run = self.anchoropt
        if not run.has_anchors:
            anchors = find_anchors(
                run.settings,
                run.tower,
                run.classes,
                len(self.train_loader_x),
                self._image_batches,
                partial(rehearse, self, super().model_inference),  # type: ignore[misc]
                lambda epoch, loss: self.write_scalar("anchoropt/stage_1_loss", loss, epoch),
                data_set=self.cfg.DATASET.NAME,
            )
            run.set_anchors(anchors)
        run.condition()
        values = run.position.anchors
        for module in _position_modules(self):  # also in copies, for averages of weights
            if not module.has_anchors and module.anchors.shape == values.shape:
                module.anchors.copy_(values)

    def _image_batches(self: Any) -> Iterator[tuple[Tensor, Tensor]]:
        features = self.anchoropt.features
        self.set_model_mode("eval")
        for batch in self.train_loader_x:
            parsed = self.parse_batch_train(batch)
            place = Batch([batch]).place_of_labels(parsed)
            if place is None:
                raise UserError(
                    f"parse_batch_train of {self.anchoropt_host.__name__} returns no labels of the "
                    "batch, which ANCHOR_CE_WEIGHT needs: set it to 0"
                )
            encoded = []
            for images in views(parsed[0]):
                features.clear()
                with torch.no_grad():
                    self.model(images)
                encoded.append(features.value.cpu())
            labels = parsed[place].repeat(len(encoded))
            # The whole batch, also if several processes share it.
            parts = zip(*distributed.gathered((torch.cat(encoded), labels.cpu())), strict=True)
            whole = [torch.cat(part).to(labels.device) for part in parts]
            yield whole[0], whole[1]

    def train(self: Any) -> None:
        with locked_folder(self.output_dir):
            super().train()  # type: ignore[misc]

    def before_train(self: Any) -> None:
        if self.anchoropt.sources is None:  # another train.py has not looked
            self.anchoropt_sources()
        self.anchoropt.plain.note()  # the processes of a run have the main one's weights by now
        super().before_train()  # type: ignore[misc]
        # Our runtime and our train.py have done it; another train.py with an installed Dassl not.
        write_record(self.anchoropt_cfg, self.output_dir, self.anchoropt.classes)
        trained = {id(parameter) for parameter in self._anchoropt_trained()}
        position = [p for p in self.anchoropt.position.parameters() if p.requires_grad]
        if position and not any(id(parameter) in trained for parameter in position):
            raise UserError(
                f"no optimiser of {self.anchoropt_host.__name__} holds the position logits of its "
                "prompt learner: give the optimiser all parameters of the learner, and do not "
                "freeze parameters with 'prompt_learner' in their name"
            )
        self.anchoropt_stage_one()
        self.anchoropt_rule.trained_classes = frozenset(map(words_of, self.anchoropt.classes))
        anchors = AnchorTokens(self.anchoropt.position.anchors.detach().float().cpu())
        anchors.save(Path(self.output_dir) / PUBLISHED_FILE)
        append_event(self.output_dir, "anchors")
        if self.start_epoch < self.max_epoch:
            print("Stage 2: learning the soft tokens and the position matrix")

    def before_epoch(self: Any) -> None:
        run = self.anchoropt
        run.position.temperature = run.settings.temperature_at(self.epoch, self.max_epoch)
        super().before_epoch()  # type: ignore[misc]
        run.compare_again()  # a host may change what its encoder computes
        run.plain.keep(self._anchoropt_trained())  # a host may begin to train more of CLIP

    def after_epoch(self: Any) -> None:
        check_weights(self)
        run = self.anchoropt
        if not run.is_in_training:
            raise UserError(
                f"{self.anchoropt_host.__name__} trained an epoch without its forward_backward, "
                "where AnchorOPT puts its objective"
            )
        run.stepped.check(self.anchoropt_host.__name__)
        write_history(Path(self.output_dir), self.epoch, run.position)
        if self._writer is not None:
            for name, value in run.scalars().items():
                self.write_scalar(f"anchoropt/{name}", value, self.epoch)
            matrix = run.position.relaxed().float().cpu()
            self._writer.add_image("anchoropt/position", matrix, self.epoch, dataformats="HW")
        super().after_epoch()  # type: ignore[misc]

    def forward_backward(self: Any, *batch: Any) -> Any:
        run, host = self.anchoropt, self.anchoropt_host.__name__
        run.features.clear()
        run.columns.clear()
        run.forget_prompts()
        run.batch = Batch(batch)
        losses = StepLosses(run, partial(expect_finite, self, message="the loss is {}"))
        step = super().forward_backward  # type: ignore[misc]
        with PromptLoss(losses), losses.watched(), run.stepped.noted():
            summary = checked_step(self, step, *batch)
        run.batch = None
        losses.check(host)
        run.check_prompts()
        return summary

    def parse_batch_train(self: Any, *batch: Any) -> Any:
        parsed = super().parse_batch_train(*batch)  # type: ignore[misc]
        self.anchoropt.note_labels(parsed)
        return parsed

    def parse_batch_test(self: Any, *batch: Any) -> Any:
        parsed = super().parse_batch_test(*batch)  # type: ignore[misc]
        if self.anchoropt_loop is not None:
            self.anchoropt_loop.parse(next(iter(batch), None), parsed)
        return parsed

    def test(self: Any, split: str | None = None) -> Any:
        self.anchoropt_stage_one()
        run, rule, process = self.anchoropt, self.anchoropt_rule, self.evaluator.process
        run.features.clear()
        run.forget_prompts()
        rule.is_in_test, rule.is_used = True, False
        self.anchoropt_loop = loop = TestLoop(run, rule, self.anchoropt_host.__name__)

        def processed(output: Any, *labels: Any) -> Any:
            return process(loop.outputs(output, *labels), *labels)

        with mock.patch.object(self.evaluator, "process", processed), run.position.tested():
            result = super().test(split)  # type: ignore[misc]
        settle_all()
        loop.labels.settle()
        rule.is_in_test, self.anchoropt_loop = False, None
        if rule.counts_anchors and not rule.is_used:
            log.warning(
                "%s gives neither through its model_inference nor its evaluator logits (images, "
                "%d classes): none were averaged with the anchor logits, as ENSEMBLE %s asks",
                self.anchoropt_host.__name__,
                len(run.classes),
                run.settings.ensemble,
            )
        if split is None:
            print(f"Position matrix, {run.order()}")
            if rule.is_used:
                print(f"Test logits: {rule.in_words()}")
        return result

    def further_results(self: Any) -> dict[str, Any]:
        """Return what the host adds to ``results.json``, and the position matrix in words."""
        further: dict[str, Any] = getattr(super(), "further_results", dict)()
        return {**further, "order": self.anchoropt.order()}

    def model_inference(self: Any, *inputs: Any) -> Any:
        run = self.anchoropt
        run.features.clear()
        with run.position.one_draw():
            output = super().model_inference(*inputs)  # type: ignore[misc]
        images = next(iter(inputs), None)
        tested = self.anchoropt_rule.logits(output, images)
        run.features.clear()
        if self.anchoropt_loop is not None and tested is not output:
            self.anchoropt_loop.is_inferred = True
        return tested


def _position_modules(trainer: Any) -> Iterator[AnchorPositionModule]:
    """Yield the position modules in all models of a trainer."""
    for value in vars(trainer).values():
        if isinstance(value, nn.Module):
            yield from (m for m in value.modules() if isinstance(m, AnchorPositionModule))

"""Both stages of AnchorOPT in one trainer: its anchors, its objective, its rule at test."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..encoders.image_features import FirstFeatures
from ..encoders.shared_prefix import leaves
from ..encoders.text_tower import TextTower
from ..errors import UserError
from ..method import descriptions
from ..method.anchors import AnchorPrompts, AnchorTokens, ImageBatches
from ..method.metrics import Means, agreement, entropy
from ..method.objective import as_logits, average, distillation, to_float32
from ..process import distributed
from . import anchor_cache
from .host_parts import HostParts
from .run_record import HISTORY, READ_AT_TEST, RECORD, _write, read_history, read_record
from .settings import LEARNED, RANDOM, AnchorOPTConfig

log = logging.getLogger("anchoropt_plugin")


class AnchorOPT:
    """AnchorOPT in one trainer: its settings, anchors, position matrix and anchor logits.

    Attributes:
        settings: checked settings.
        position: the module on the host's prompt learner.
        classes: names of the classes at hand.
        trained_classes: names of those the prompt was trained on, or None where nothing says so.
        features: of the images last seen.
        means: of what the steps of this epoch computed.
    """

    def __init__(
        self, settings: AnchorOPTConfig, parts: HostParts, class_names: Sequence[str]
    ) -> None:
        self.settings = settings
        self.position = parts.position
        self.classes = list(class_names)
        self.trained_classes: frozenset[str] | None = None
        self.is_in_training = self.is_in_test = False
        self.hook = parts.hook
        self._learned = {id(parameter) for parameter in parts.learner.parameters()}
        self.features = FirstFeatures(self.hook.plain_features)
        parts.image_encoder.register_forward_hook(self.features)
        self.tower = TextTower(parts.clip)
        self.prompts = AnchorPrompts(self.tower, class_names, settings.anchor_len)
        self.means = Means()
        self._encoded: tuple[tuple[int, int], Tensor] | None = None

    # ------------------------------------------------------------------ stage 1
    @property
    def has_anchors(self) -> bool:
        """Whether anchors were learned or loaded: until then zeros stand in for them."""
        return self.position.has_anchors

    def find_anchors(
        self,
        steps: int,
        images: ImageBatches,
        on_loss: Callable[[int, float], None],
    ) -> None:
        """Stage 1: load, recall, learn or make the anchors, and put them into the learner.

        Args:
            steps: of an epoch.
            images: one epoch of image features and labels; read only if ANCHOR_CE_WEIGHT asks.
            on_loss: takes each epoch (from 0) and its loss, where anchors are learned.
        """
        path = self.settings.anchor_weights
        if path:
            anchors = AnchorTokens.load(path)
            print(f"Stage 1: anchors loaded from {path}")
        elif self.settings.anchor != LEARNED:
            anchors = self._made()
            print(f"Stage 1: left out, the anchors are {self.settings.anchor}")
        else:
            anchors = self._recalled_or_learned(steps, images, on_loss)
        found, wanted = tuple(anchors.values.shape), tuple(self.position.anchors.shape)
        if found != wanted:
            raise UserError(
                f"the anchors in {path} are {found}, this run needs {wanted}: they were learned "
                "with another ANCHOR_LEN or on another backbone"
            )
        distributed.copy_from_main(self.position.anchors.copy_(anchors.values))

    def _made(self) -> AnchorTokens:
        wanted, length = self.settings.anchor, self.settings.anchor_len
        if wanted == RANDOM:
            return AnchorTokens.random(self.tower, length)
        return AnchorTokens.of_words(self.tower, wanted, length)

    def _recalled_or_learned(
        self,
        steps: int,
        images: ImageBatches,
        on_loss: Callable[[int, float], None],
    ) -> AnchorTokens:
        settings = self.settings
        limit = settings.max_template_length
        if settings.descriptions:
            texts = descriptions.read(settings.descriptions, self.classes, limit)
        else:
            print("Stage 1: no TRAINER.ANCHOROPT.DESCRIPTIONS given, templates stand in for them")
            texts = descriptions.from_templates(self.classes, limit)
        wanted = settings.stage_one(steps)
        # What is learned from images depends on the seed as well, and is not shared.
        share = not settings.anchor_ce_weight
        folder = anchor_cache.cache_folder(settings.anchor_cache)
        key = anchor_cache.content_key(self.tower, self.classes, texts, wanted)
        wanted_shape = tuple(self.position.anchors.shape)
        anchors = anchor_cache.get(folder, key, wanted_shape) if share else None
        # Of several processes one may look after another has kept them.
        anchors = distributed.from_main(anchors)
        if anchors is not None:
            print(f"Stage 1: anchors recalled from {folder} (key {key})")
            return anchors
        print(f"Stage 1: learning {wanted.length} anchor token(s) from {len(self.classes)} classes")
        every = max(1, wanted.epochs // 10)

        def report(epoch: int, loss: float) -> None:
            on_loss(epoch, loss)
            if (epoch + 1) % every == 0 or epoch + 1 == wanted.epochs:
                rate = wanted.lr_at(epoch)
                print(f"stage 1 epoch [{epoch + 1}/{wanted.epochs}] loss {loss:.6f} lr {rate:.4e}")

        anchors = AnchorTokens.learn(
            self.tower, self.classes, texts, wanted, images=images, on_epoch=report
        )
        if share:
            anchors.key = key
            anchor_cache.put(anchors, folder)
        return anchors

    # ------------------------------------------------------------------ stage 2 and test
    @torch.no_grad()
    def _class_features(self) -> Tensor:
        """L2-normalised features (C, e) of the anchor prompts, in float32; encoded once."""
        anchors = self.position.anchors
        # A tensor's version counts its in-place changes: loading weights is one of them.
        version = anchors._version, self.tower.version()
        if self._encoded is None or self._encoded[0] != version:
            # What is kept must serve in training too, even if a test in inference mode is first.
            with torch.inference_mode(False), torch.no_grad():
                self._encoded = version, self.prompts.encode(anchors)
        return self._encoded[1]

    def condition(self) -> None:
        """Tell the position matrix of the task, where it is conditioned on that."""
        if self.settings.position_task and self.has_anchors:
            self.position.task.copy_(self._class_features().mean(0))

    @torch.no_grad()
    def logits(self) -> Tensor:
        """l_a (B, C) of the images last seen, in float32."""
        images = self.features.value
        if images is None:
            raise UserError(
                "the host's image encoder has not been called since the step began: AnchorOPT has "
                "no image features; a copy of the model, such as an average of its weights, has "
                "an encoder of its own"
            )
        with torch.autocast(images.device.type, enabled=False):
            scale = self.tower.clip.logit_scale.exp().float()
            return scale * images @ self._class_features().t()

    def is_prompt_logits(self, logits: Tensor) -> bool:
        """Whether a host's cross-entropy is over l_n (B, C) of the images last seen."""
        images = self.features.value
        if images is None or not self.hook.is_prompt_logits(logits, len(images), len(self.classes)):
            return False
        # A zero-shot head's logits, or an image head's, have the same shape.
        return any(id(leaf) in self._learned for leaf in leaves(logits))

    def loss(self, cross_entropy: Tensor, logits: Tensor) -> Tensor:
        """The objective of stage 2, given the host's cross-entropy and its logits l_n (B, C)."""
        settings = self.settings
        loss = settings.prompt_ce_weight * to_float32(cross_entropy)
        if settings.kd_weight:
            anchor_logits = self.logits()
            divergence = distillation(logits, anchor_logits, settings.kd_temperature)
            loss = loss + settings.kd_weight * divergence
            self.means.add(distillation=divergence, agreement=agreement(logits, anchor_logits))
        self.means.add(cross_entropy=cross_entropy)
        self.is_in_training = self.features.is_used = True
        return loss

    def scalars(self) -> dict[str, float]:
        """What is told of an epoch: means over its steps, and the position matrix after it.

        ``distillation`` and ``agreement``, the share of images to which l_n and l_a give the same
        class, are there where KD_WEIGHT is not 0: without it no step computes l_a.
        """
        return {**self.means.take(), "position_entropy": entropy(self.position.relaxed()).item()}

    def tested(self, output: Any, subsample: str) -> Any:
        """What a test counts: the prompt's l_n (B, C), their average with l_a, or l_a alone.

        Args:
            output: of the host for the images last seen: l_n, alone or first of several; another
                output is returned as it is.
            subsample: as ``averages`` takes it.
        """
        logits, *others = output if isinstance(output, (tuple, list)) else (output,)
        images = self.features.value
        if images is not None and getattr(logits, "shape", None) != (
            len(images),
            len(self.classes),
        ):
            return output
        self.is_in_test = self.features.is_used = True
        if self.settings.ensemble == "anchors":
            logits = self.logits()
        elif self.averages(subsample):
            logits = average(as_logits(logits), self.logits())
        return (logits, *others) if others else logits

    def averages(self, subsample: str) -> bool:
        """Whether test logits are averaged with l_a: where a class was not trained on.

        Args:
            subsample: ``DATASET.SUBSAMPLE_CLASSES``; decides where no record names the classes.
        """
        if self.settings.ensemble != "auto":
            return self.settings.ensemble == "always"
        if self.trained_classes is None:
            return subsample != "base"
        return not self.trained_classes.issuperset(self.classes)

    # ------------------------------------------------------------------ the record of a run
    def write_history(self, folder: Path, epoch: int) -> None:
        """Add the relaxed position matrix after ``epoch`` (from 0) to ``position.jsonl``.

        A run that was resumed writes over the lines of the epochs it does again.
        """
        path = folder / HISTORY
        before = read_history(path) if epoch and path.exists() else []
        lines = [json.dumps(entry) for entry in before if entry["epoch"] <= epoch]
        matrix = [[round(x, 4) for x in row] for row in self.position.relaxed().tolist()]
        temperature = self.position.temperature
        lines.append(json.dumps({"epoch": epoch + 1, "temperature": temperature, "P": matrix}))
        _write("\n".join(lines) + "\n", path)

    def write_record(self, folder: Path, cfg: Any) -> None:
        """Write ``anchoropt.json``, which tells a later test what was trained."""
        record = {
            "trainer": cfg.TRAINER.NAME,
            "backbone": cfg.MODEL.BACKBONE.NAME,
            "classes": self.classes,
            "settings": self.settings.to_dict(),
        }
        _write(json.dumps(record, indent=1), folder / RECORD)

    def read_record(self, folder: Path, cfg: Any) -> bool:
        """Learn from ``anchoropt.json`` which classes a checkpoint was trained on; is it there?"""
        path = folder / RECORD
        if not path.exists():
            log.warning(
                "%s is not there: DATASET.SUBSAMPLE_CLASSES says which classes were trained on "
                "(base: all, otherwise: not all)",
                path,
            )
            return False
        record = read_record(path)
        backbone = record["backbone"]
        settings = {**AnchorOPTConfig().to_dict(), **record["settings"]}
        trained = {name: settings[name] for name in READ_AT_TEST}
        if backbone != cfg.MODEL.BACKBONE.NAME:
            raise UserError(
                f"{folder} was trained on {backbone}, this run has {cfg.MODEL.BACKBONE.NAME}: "
                "give its --config-file or --backbone"
            )
        for name, value in trained.items():
            present = getattr(self.settings, name)
            if present != value:
                raise UserError(
                    f"{folder} was trained with TRAINER.ANCHOROPT.{name.upper()} {value}, this run "
                    f"has {present}: give the value it was trained with"
                )
        self.trained_classes = frozenset(record["classes"])
        return True

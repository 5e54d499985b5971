"""``@anchoropt``: the two stages of AnchorOPT around an existing Dassl trainer, left as it is."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from . import anchors as stage_one
from . import checkpoints, descriptions
from .anchors import AnchorPrompts, AnchorTokens
from .config import AnchorOPTConfig
from .errors import UserError
from .objective import PromptLoss, average, distillation
from .text_encoder import TextTower
from .wiring import FirstFeatures, HostParts, own_learning_rate

log = logging.getLogger("anchoropt_plugin")

SUFFIX = "_AnchorOPT"
RECORD = "anchoropt.json"
"""Written beside a model's checkpoints: which classes it was trained on, and with what settings."""
HISTORY = "position.jsonl"
"""Written into the output folder: after each epoch a line with the relaxed position matrix."""

Trainer = TypeVar("Trainer", bound=type)


class AnchorOPT:
    """AnchorOPT in one trainer: its settings, anchors, position matrix and anchor logits.

    Attributes:
        settings: checked settings.
        position: the module on the host's prompt learner.
        classes: names of the classes at hand.
        trained_classes: names of those the prompt was trained on, or None where nothing says so.
        features: of the images last seen.
    """

    def __init__(
        self, settings: AnchorOPTConfig, parts: HostParts, class_names: Sequence[str]
    ) -> None:
        self.settings = settings
        self.position = parts.position
        self.classes = list(class_names)
        self.trained_classes: frozenset[str] | None = None
        self.features = FirstFeatures()
        parts.image_encoder.register_forward_hook(self.features)
        self.tower = TextTower(parts.clip)
        self.prompts = AnchorPrompts(self.tower, class_names, settings.anchor_len)
        self._encoded: tuple[int, Tensor] | None = None

    # ------------------------------------------------------------------ stage 1
    @property
    def has_anchors(self) -> bool:
        """Whether anchors were learned or loaded: until then zeros stand in for them."""
        return bool(self.position.anchors.any())

    def find_anchors(self, steps: int, images: stage_one.ImageBatches) -> None:
        """Stage 1: load, recall or learn the anchors, and put them into the learner.

        Args:
            steps: of an epoch.
            images: one epoch of image features and labels; read only if ANCHOR_CE_WEIGHT asks.
        """
        path = self.settings.anchor_weights
        if path:
            anchors = AnchorTokens.load(path)
            print(f"Stage 1: anchors loaded from {path}")
        else:
            anchors = self._recalled_or_learned(steps, images)
        found, wanted = tuple(anchors.values.shape), tuple(self.position.anchors.shape)
        if found != wanted:
            raise UserError(
                f"the anchors in {path} are {found}, this run needs {wanted}: they were learned "
                "with another ANCHOR_LEN or on another backbone"
            )
        self.position.anchors.copy_(anchors.values)

    def _recalled_or_learned(self, steps: int, images: stage_one.ImageBatches) -> AnchorTokens:
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
        folder = stage_one.cache_folder(settings.anchor_cache)
        key = stage_one.content_key(self.tower, self.classes, texts, wanted)
        anchors = stage_one.recall(folder, key) if share else None
        if anchors is not None:
            print(f"Stage 1: anchors recalled from {folder} (key {key})")
            return anchors
        print(f"Stage 1: learning {wanted.length} anchor token(s) from {len(self.classes)} classes")
        every = max(1, wanted.epochs // 10)

        def report(epoch: int, loss: float) -> None:
            if (epoch + 1) % every == 0 or epoch + 1 == wanted.epochs:
                rate = wanted.lr_at(epoch)
                print(f"stage 1 epoch [{epoch + 1}/{wanted.epochs}] loss {loss:.6f} lr {rate:.4e}")

        anchors = AnchorTokens.learn(
            self.tower, self.classes, texts, wanted, images=images, on_epoch=report
        )
        if share:
            anchors.key = key
            stage_one.keep(anchors, folder)
        return anchors

    # ------------------------------------------------------------------ stage 2 and test
    @torch.no_grad()
    def logits(self) -> Tensor:
        """l_a (B, C) of the images last seen, in float32; the anchor prompts are encoded once."""
        anchors = self.position.anchors
        # A tensor's version counts its in-place changes: loading weights is one of them.
        if self._encoded is None or self._encoded[0] != anchors._version:
            self._encoded = anchors._version, self.prompts.encode(anchors)
        images = self.features.value
        assert images is not None, "the image encoder has not been called"
        with torch.autocast(images.device.type, enabled=False):
            scale = self.tower.clip.logit_scale.exp().float()
            return scale * images @ self._encoded[1].t()

    def loss(self, cross_entropy: Tensor, logits: Tensor) -> Tensor:
        """The objective of stage 2, given the host's cross-entropy and its logits l_n (B, C)."""
        settings = self.settings
        loss = settings.prompt_ce_weight * cross_entropy
        if settings.kd_weight:
            divergence = distillation(logits, self.logits(), settings.kd_temperature)
            loss = loss + settings.kd_weight * divergence
        return loss

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
        lines = path.read_text(encoding="utf-8").splitlines()[:epoch] if epoch else []
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

    def read_record(self, folder: Path, cfg: Any) -> None:
        """Learn from ``anchoropt.json`` which classes a checkpoint was trained on."""
        path = folder / RECORD
        if not path.exists():
            log.warning(
                "%s is not there: DATASET.SUBSAMPLE_CLASSES says which classes were trained on "
                "(base: all, otherwise: not all)",
                path,
            )
            return
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            backbone, classes = record["backbone"], frozenset(record["classes"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"cannot read {path}: {error!r}; delete it or copy it anew") from error
        if backbone != cfg.MODEL.BACKBONE.NAME:
            raise UserError(
                f"{folder} was trained on {backbone}, this run has {cfg.MODEL.BACKBONE.NAME}: "
                "give its --config-file or --backbone"
            )
        self.trained_classes = classes


class TwoStages:
    """What ``@anchoropt`` puts before a host trainer: stage 1, then its training as stage 2.

    Each method does its part and calls the host's. All state is in ``self.anchoropt``; the class
    attributes are set by the decorator.
    """

    anchoropt_host: type
    anchoropt_learner: str
    anchoropt_arguments: dict[str, Any]
    anchoropt: AnchorOPT

    def __init__(self, cfg: Any) -> None:
        settings = AnchorOPTConfig.from_cfg(cfg, **self.anchoropt_arguments)
        if settings.n_ctx:
            cfg = _with_soft_tokens(cfg, self.anchoropt_host.__name__, settings.n_ctx)
        super().__init__(cfg)  # type: ignore[call-arg]

    def build_model(self: Any) -> None:
        settings = AnchorOPTConfig.from_cfg(self.cfg, **self.anchoropt_arguments)
        parts = HostParts(self.anchoropt_host.__name__, self.anchoropt_learner, settings)
        with parts.watching():
            super().build_model()  # type: ignore[misc]
        self.anchoropt = AnchorOPT(settings, parts, self.dm.dataset.classnames)
        for name in self.get_model_names():
            optimizer, scheduler = self._optims[name], self._scheds[name]
            if optimizer is not None and settings.position_lr:
                logits = parts.position.logits
                own_learning_rate(optimizer, scheduler, logits, settings.position_lr)

    def anchoropt_stage_one(self: Any) -> None:
        """Run stage 1 unless a checkpoint brought anchors; a vanilla one of the host has none."""
        if not self.anchoropt.has_anchors:
            self.anchoropt.find_anchors(len(self.train_loader_x), self._image_batches)

    def _image_batches(self: Any) -> Iterator[tuple[Tensor, Tensor]]:
        features = self.anchoropt.features
        self.set_model_mode("eval")
        for batch in self.train_loader_x:
            images, labels = self.parse_batch_train(batch)[:2]
            features.clear()
            with torch.no_grad():
                self.model(images)
            yield features.value, labels

    def before_train(self: Any) -> None:
        super().before_train()  # type: ignore[misc]
        self.anchoropt_stage_one()
        self.anchoropt.trained_classes = frozenset(self.anchoropt.classes)
        anchors = AnchorTokens(self.anchoropt.position.anchors.detach().float().cpu())
        anchors.save(Path(self.output_dir) / stage_one.PUBLISHED_FILE)
        print("Stage 2: learning the soft tokens and the position matrix")

    def before_epoch(self: Any) -> None:
        run = self.anchoropt
        run.position.temperature = run.settings.temperature_at(self.epoch, self.max_epoch)
        super().before_epoch()  # type: ignore[misc]

    def after_epoch(self: Any) -> None:
        self.anchoropt.write_history(Path(self.output_dir), self.epoch)
        super().after_epoch()  # type: ignore[misc]

    def forward_backward(self: Any, *batch: Any) -> Any:
        self.anchoropt.features.clear()
        with PromptLoss(self.anchoropt.loss) as seen:
            summary = super().forward_backward(*batch)  # type: ignore[misc]
        if not seen.calls:
            raise UserError(
                f"{self.anchoropt_host.__name__} computes its loss without F.cross_entropy: "
                "AnchorOPT cannot put its objective there"
            )
        return summary

    def test(self: Any, split: str | None = None) -> Any:
        self.anchoropt_stage_one()
        return super().test(split)  # type: ignore[misc]

    def model_inference(self: Any, *inputs: Any) -> Any:
        run = self.anchoropt
        run.features.clear()
        logits = super().model_inference(*inputs)  # type: ignore[misc]
        if run.averages(self.cfg.DATASET.SUBSAMPLE_CLASSES):
            return average(logits, run.logits())
        return logits

    def save_model(self: Any, epoch: int, directory: str, *args: Any, **kwargs: Any) -> None:
        super().save_model(epoch, directory, *args, **kwargs)  # type: ignore[misc]
        self.anchoropt.write_record(Path(directory), self.cfg)

    def load_model(self: Any, directory: str, epoch: int | None = None) -> None:
        if directory:
            self.anchoropt.read_record(Path(directory), self.cfg)
        super().load_model(directory, epoch)  # type: ignore[misc]


def _write(text: str, path: Path) -> None:
    with checkpoints.atomic_write(path) as file:
        file.write(text.encode())


def _with_soft_tokens(cfg: Any, host: str, n_ctx: int) -> Any:
    """A copy of ``cfg`` in which the host has ``n_ctx`` soft tokens."""
    node = cfg.TRAINER.get(host.upper())
    if node is None or "N_CTX" not in node:
        raise UserError(
            f"TRAINER.ANCHOROPT.N_CTX: {host} has no TRAINER.{host.upper()}.N_CTX to hand it to; "
            "set the host's own key for its soft tokens"
        )
    cfg = cfg.clone()
    cfg.defrost()
    cfg.TRAINER[host.upper()].N_CTX = n_ctx
    cfg.freeze()
    return cfg


def anchoropt(
    trainer: Trainer | None = None,
    *,
    name: str | None = None,
    learner: str = "prompt_learner",
    **settings: Any,
) -> Trainer | Callable[[Trainer], Trainer]:
    """Register ``<Name>_AnchorOPT`` beside a Dassl trainer, and return the trainer untouched.

    Args:
        trainer: a trainer of the CoOp family: its ``build_model`` builds CLIP and a model whose
            prompt learner fits ``PromptHook``, and its loss goes through ``F.cross_entropy``.
        name: the new trainer's name, instead of ``<Name>_AnchorOPT``.
        learner: under which name the host's model holds its prompt learner.
        settings: of ``AnchorOPTConfig``, in place of its defaults; keys given in a yaml or on the
            command line win.

    Raises:
        UserError: an unknown setting, or one that cannot be.

    >>> from dassl.engine import TRAINER_REGISTRY, TrainerX
    >>> @anchoropt(position="gumbel")
    ... @TRAINER_REGISTRY.register()
    ... class MyPrompts(TrainerX):
    ...     pass
    >>> TRAINER_REGISTRY.get("MyPrompts_AnchorOPT").__mro__[2] is MyPrompts
    True
    """
    AnchorOPTConfig.with_arguments(settings)

    def register(host: Trainer) -> Trainer:
        from dassl.engine import TRAINER_REGISTRY

        namespace = {
            "__doc__": f"{host.__name__} with AnchorOPT: learned anchors and a position matrix.",
            "__module__": host.__module__,
            "anchoropt_host": host,
            "anchoropt_learner": learner,
            "anchoropt_arguments": settings,
        }
        two_stages = type(name or host.__name__ + SUFFIX, (TwoStages, host), namespace)
        TRAINER_REGISTRY.register()(two_stages)
        return host

    return register if trainer is None else register(trainer)

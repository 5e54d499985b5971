"""The base of all host trainers: build, train, save and load a prompt learner.

A host trainer is a plain Dassl trainer of a prompt learner, such as CoOp. AnchorOPT is put on top
of a host by its decorator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anchoropt_plugin import accelerate
from anchoropt_plugin.dassl_compat.utils import load_pretrained_weights
from anchoropt_plugin.encoders.clip_models import warn_of_unknown_words
from anchoropt_plugin.encoders.feature_cache import cache_image_features
from anchoropt_plugin.errors import UserError
from anchoropt_plugin.files import checkpoints
from anchoropt_plugin.files.checkpoint_folder import (
    CHILD,
    is_of_anchoropt,
    is_of_classes,
    last_checkpoint_name,
    tensor_of_other_classes,
    without_module,
)
from anchoropt_plugin.training.released_files import (
    LEARNER_FOLDER,
    is_released,
    renamed,
)
from dassl.engine import TrainerX
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import load_checkpoint

from .prompted_clip import ContextLearner, PromptedCLIP, load_host_clip


class PromptTrainer(TrainerX):
    """Train the module of ``checkpointed``, by default the prompt learner, and nothing else.

    Keys: ``N_CTX`` and ``PREC`` of the host's node; ``MODEL.BACKBONE.NAME``,
    ``MODEL.INIT_WEIGHTS``, ``INPUT.SIZE``; ``OPTIM``; of ``TRAINER.ANCHOROPT`` the keys
    ``FAST_TEXT``, ``CLASS_CHUNK``, ``SPLIT_CLASSES`` and ``KEEP_FEATURES``, which also serve plain
    hosts.

    Attributes:
        node: the host's node in ``cfg.TRAINER``.
        further_nodes: other nodes there whose keys change the outputs of a trained model.
        nodes_of_data: other nodes there whose keys belong to the data set, also to that of a test.
        learner: the class of the host's prompt learner.
        prompted_clip: the class of the host's model, which takes the learner and CLIP.
    """

    node: str
    further_nodes: tuple[str, ...] = ()
    nodes_of_data: tuple[str, ...] = ()
    learner: type[ContextLearner]
    prompted_clip = PromptedCLIP

    def check_cfg(self, cfg: Any) -> None:
        settings = cfg.TRAINER[self.node]
        if settings.PREC not in ("fp16", "fp32", "amp"):
            raise UserError(
                f"TRAINER.{self.node}.PREC is {settings.PREC!r}: give one of fp16, fp32, amp"
            )
        if settings.N_CTX < 1:
            raise UserError(
                f"TRAINER.{self.node}.N_CTX is {settings.N_CTX}: give 1 or more soft tokens"
            )
        if cfg.DATALOADER.K_TRANSFORMS > 1:
            raise UserError(
                f"DATALOADER.K_TRANSFORMS is {cfg.DATALOADER.K_TRANSFORMS}: give 1, as "
                f"{type(self).__name__} takes one view of each image"
            )

    def build_learner(self, class_names: Sequence[str], clip: nn.Module) -> nn.Module:
        """Return the host's prompt learner, on the CPU as ``clip`` is."""
        return self.learner(self.cfg, class_names, clip)

    def build_prompted_clip(self, learner: nn.Module, clip: nn.Module) -> PromptedCLIP:
        """Return the host's model: CLIP with the prompt learner in it."""
        return self.prompted_clip(learner, clip)

    def checkpointed(self) -> tuple[str, nn.Module]:
        """Return the name of the checkpoint folder, and the module that is trained and saved."""
        return "prompt_learner", self.model.prompt_learner

    def parameter_groups(self, trained: nn.Module) -> list[dict[str, Any]] | None:
        """Return the optimiser's parameter groups, or None for one group of all parameters."""
        return None

    def build_model(self) -> None:
        cfg = self.cfg
        class_names = self.dm.dataset.classnames
        precision = cfg.TRAINER[self.node].PREC
        clip = load_host_clip(cfg, precision, self.device)
        warn_of_unknown_words(clip, class_names)
        self.model = self.build_prompted_clip(self.build_learner(class_names, clip), clip)
        if cfg.TRAINER.ANCHOROPT.FAST_TEXT:
            anchoropt = cfg.TRAINER.ANCHOROPT
            accelerate(self.model, chunk=anchoropt.CLASS_CHUNK, split=anchoropt.SPLIT_CLASSES)
        if cfg.TRAINER.ANCHOROPT.KEEP_FEATURES:
            cache_image_features(self.model.image_encoder)
        name, trained = self.checkpointed()
        self.model.requires_grad_(False)
        trained.requires_grad_(True)
        if cfg.MODEL.INIT_WEIGHTS:
            of_these_classes = {
                key: buffer.clone() for key, buffer in trained.named_buffers() if is_of_classes(key)
            }
            _load_initial_weights(trained, cfg.MODEL.INIT_WEIGHTS)
            trained.load_state_dict(of_these_classes, strict=False)
        self.model.to(self.device)
        self.optim = build_optimizer(trained, cfg.OPTIM, self.parameter_groups(trained))
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.register_model(name, trained, self.optim, self.sched)
        self.amp = precision == "amp" and self.device.type == "cuda"
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp)

    def parse_batch_train(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        images = batch["img"].to(self.device, non_blocking=True)
        return images, batch["label"].to(self.device, non_blocking=True)

    def loss(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss, a scalar, and the logits (B, C) for the printed accuracy."""
        output = self.model(image)
        return F.cross_entropy(output, label), output

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        image, label = self.parse_batch_train(batch)
        with torch.autocast(self.device.type, enabled=self.amp):
            loss, output = self.loss(image, label)
        self.detect_anomaly(loss)
        self.model_zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optim)
        self.scaler.update()
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.detach(), "acc": compute_accuracy(output, label)[0].detach()}

    def loadable(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the part of a checkpoint's ``state`` that fits the present classes."""
        return {key: value for key, value in state.items() if not is_of_classes(key)}

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load a checkpoint for the present classes.

        Args:
            directory: the output folder of a run; "" loads nothing.
            epoch: the epoch of the checkpoint; None for the best, -1 for the last.

        Raises:
            UserError: a missing checkpoint, or one of another context length, prompt depth or
                backbone, or with contexts of other classes.
        """
        if not directory:
            print("No --model-dir given: the prompt keeps its initial values")
            return
        for name in self.get_model_names():
            folders = Path(directory, name), Path(directory, LEARNER_FOLDER)
            paths = [_checkpoint(folder, epoch) for folder in folders]
            path = next((path for path in paths if path.exists()), paths[0])
            if not path.exists():
                raise UserError(f"there is no checkpoint {path}; {_advice(path.parent)}")
            checkpoint = load_checkpoint(str(path))
            state, model = without_module(checkpoint["state_dict"]), self._models[name]
            check_classes(state, model, str(path))
            state = self.loadable(state)
            check_fits(state, model, str(path))
            print(f'Loading weights to {name} from "{path}" (epoch = {checkpoint["epoch"]})')
            model.load_state_dict(state, strict=False)


def _load_initial_weights(model: nn.Module, path: str) -> None:
    state = without_module(checkpoints.load(path).get("state_dict", {}))
    own = model.state_dict()
    check_classes(state, model, path)
    # Otherwise the soft tokens would be skipped, as other tensors of another shape are.
    check_shapes({key: x for key, x in state.items() if key.endswith("ctx")}, own, path)
    if not is_released(state) or not any(CHILD in name.split(".") for name in own):
        load_pretrained_weights(model, path)
        return
    state = renamed(state, own)
    check_shapes(state, own, path)
    model.load_state_dict(state, strict=False)
    print(f"Loaded the soft tokens and position logits of the released code from {path}")


def _checkpoint(folder: Path, epoch: int | None) -> Path:
    if epoch is None:
        return folder / "model-best.pth.tar"
    if epoch < -1:
        raise UserError(f"--load-epoch is {epoch}: give an epoch from 1, or -1 for the last one")
    last = folder / "checkpoint"  # a text file with the name of the last checkpoint
    if epoch < 0 and last.exists():
        return folder / last_checkpoint_name(folder)
    return folder / f"model.pth.tar-{epoch}"


def _advice(folder: Path) -> str:
    found = sorted(path.name for path in folder.glob("model*"))
    if found:
        return f"the folder has {', '.join(found)}: choose one with --load-epoch"
    return "check --model-dir"


def check_classes(state: Mapping[str, Tensor], model: nn.Module, origin: str) -> None:
    """Check that a context of each class (CSC), if a checkpoint has one, is of these classes.

    Args:
        state: the weights by name.
        model: the module to load them into.
        origin: the file, for messages.

    Raises:
        UserError: the classes are others, or in another order.
    """
    own = model.state_dict()
    for name, ctx in state.items():
        same_shape = ctx.dim() == 3 and name in own and ctx.shape[1:] == own[name].shape[1:]
        if same_shape and name.endswith("ctx") and tensor_of_other_classes(state, own):
            raise UserError(
                f"{origin} does not fit: its {name} is one context for each of {len(ctx)} other "
                "classes (CSC True); such contexts fit the classes of their training alone, in its "
                "order"
            )


def check_fits(state: dict[str, Tensor], model: nn.Module, origin: str) -> None:
    """Check that the weights of a checkpoint are those of this host.

    Further keys are ignored, as checkpoints of whole models hold CLIP too. A checkpoint without
    AnchorOPT fits a trainer with AnchorOPT, but not the reverse.

    Args:
        state: the weights by name.
        model: the module to load them into.
        origin: the file, for messages.

    Raises:
        UserError: weights of another trainer, context length, prompt depth or backbone.
    """
    own = model.state_dict()
    for key in state:
        if is_of_anchoropt(key) and key not in own:
            raise UserError(
                f"{origin} was trained with AnchorOPT: give the --trainer whose name ends in "
                "_AnchorOPT"
            )
    check_shapes(state, own, origin)
    lists = {name for name, part in model.named_modules() if isinstance(part, nn.ParameterList)}
    here = {name for name, _ in model.named_parameters() if CHILD not in name.split(".")}
    there = {key for key in state if key in own or key.rpartition(".")[0] in lists}
    for keys, place in ((here - there, "model"), (there - own.keys(), "checkpoint")):
        if keys:
            raise UserError(
                f"{origin} does not fit: only the {place} has {min(keys)}; the checkpoint is for "
                "another trainer or prompt depth"
            )


def check_shapes(state: Mapping[str, Tensor], own: Mapping[str, Tensor], origin: str) -> None:
    """Check that the tensors of ``state`` in ``own`` have the same shapes there.

    Raises:
        UserError: another shape; ``origin`` names the file.
    """
    for key, value in state.items():
        if key in own and own[key].shape != value.shape:
            raise UserError(
                f"{origin} does not fit: {key} is {tuple(value.shape)} in the checkpoint and "
                f"{tuple(own[key].shape)} in the model; the checkpoint is for another context "
                "length, CSC or backbone"
            )

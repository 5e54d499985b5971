"""The base of all trainers: models by name, their checkpoints, the order of a training."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ...config.same_run import run_of
from ...errors import UserError
from ...files.checkpoint_folder import BEST_MODEL, is_of_anchoropt, newest_common_checkpoint
from ...process import distributed
from ...process.randomness import random_state
from ..finite_checks import expect_finite
from ..utils.tools import tolist_if_not
from ..utils.torchtools import (
    check_classes,
    load_checkpoint,
    resume_from_checkpoint,
    save_checkpoint,
)
from ..utils.writer import SummaryWriter

Names = str | Sequence[str] | None


def _refuse_anchors(model: nn.Module, keys: Any) -> None:
    """Refuse a checkpoint with AnchorOPT for a model without, which hosts load with strict=False.

    Soft tokens that were trained between anchors would be tested alone.
    """
    if any(map(is_of_anchoropt, keys.unexpected_keys)):
        raise UserError(
            "the checkpoint was trained with AnchorOPT, and the trainer is without: give the "
            "--trainer whose name ends in _AnchorOPT"
        )


class TrainerBase:
    """Models by name, each with an optimiser and a schedule, and the order of a training::

    before_train()
    for each epoch:
        before_epoch()
        run_epoch()
        after_epoch()
    after_train()
    """

    def __init__(self) -> None:
        self._models: OrderedDict[str, nn.Module] = OrderedDict()
        self._optims: OrderedDict[str, Optimizer | None] = OrderedDict()
        self._scheds: OrderedDict[str, LRScheduler | None] = OrderedDict()
        self._writer: Any = None
        self.start_epoch = self.epoch = self.max_epoch = 0

    def register_model(
        self,
        name: str = "model",
        model: nn.Module | None = None,
        optim: Optimizer | None = None,
        sched: LRScheduler | None = None,
    ) -> None:
        """Register a model that is saved, with its optimiser and schedule if it is trained.

        Raises:
            ValueError: another model has this name.
        """
        if name in self._models:
            raise ValueError(f"another model is registered as {name!r}")
        if isinstance(model, nn.Module):
            model.register_load_state_dict_post_hook(_refuse_anchors)
        self._models[name] = model  # type: ignore[assignment]
        self._optims[name] = optim
        self._scheds[name] = sched

    def get_model_names(self, names: Names = None) -> list[str]:
        """Return ``names`` as a list; None gives the names of all models.

        Raises:
            KeyError: no model has this name.
        """
        if names is None:
            return list(self._models)
        names = list(names) if isinstance(names, tuple) else tolist_if_not(names)
        for name in names:
            if name not in self._models:
                raise KeyError(f"no model is registered as {name!r}")
        return names

    def save_model(
        self,
        epoch: int,
        directory: str,
        is_best: bool = False,
        val_result: float | None = None,
        model_name: str = "",
    ) -> None:
        """Write every model to ``{directory}/{name}/model.pth.tar-{epoch + 1}``.

        Args:
            epoch: the last finished epoch, from 0.
            directory: the output folder.
            is_best: also copy the file to ``model-best.pth.tar``.
            val_result: the result on the validation set.
            model_name: another file name.
        """
        scaler = getattr(self, "scaler", None)  # some hosts have one, for amp
        for name in self.get_model_names():
            optim, sched = self._optims[name], self._scheds[name]
            state = {
                "state_dict": self._models[name].state_dict(),
                "epoch": epoch + 1,
                "optimizer": None if optim is None else optim.state_dict(),
                "scheduler": None if sched is None else sched.state_dict(),
                "val_result": val_result,
                # With the random state a resumed run gives the numbers of an uninterrupted run.
                "rng": random_state(),
                "run": run_of(directory),
            }
            if scaler is not None and scaler.is_enabled():
                state["scaler"] = scaler.state_dict()
            save_checkpoint(state, Path(directory, name), is_best=is_best, model_name=model_name)

    def resume_model_if_exist(self, directory: str) -> int:
        """Restore every model from ``directory``, if all models have a checkpoint there.

        Returns:
            The number of finished epochs; 0 if no checkpoint was found.

        Raises:
            UserError: a checkpoint cannot be read, or the models have different epochs.
        """
        folders = {name: Path(directory, name) for name in self.get_model_names()}
        if not all((folder / "checkpoint").exists() for folder in folders.values()):
            print("No checkpoint found, train from scratch")
            return 0
        print(f"Found checkpoint at {directory} (will resume training)")
        file_name = newest_common_checkpoint(folders.values())
        scaler = getattr(self, "scaler", None)
        cfg = getattr(self, "cfg", None)  # subclasses have one
        extend = cfg is not None and cfg.OPTIM.get("EXTEND", False)
        if extend:
            print(
                "OPTIM.EXTEND: the result differs from that of a run of this length, whose first "
                "epochs have other learning rates"
            )
        epochs = set()
        for name, folder in folders.items():
            parts = self._models[name], self._optims[name], self._scheds[name]
            epochs.add(resume_from_checkpoint(folder, *parts, scaler, file_name, extend))
        if len(epochs) > 1:
            raise UserError(
                f"the checkpoints in {directory} are of different epochs {sorted(epochs)}; "
                "write the same file name into each text file `checkpoint`, or remove these files"
            )
        return epochs.pop()

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load every model from ``{directory}/{name}``.

        Args:
            directory: an output folder; with an empty name nothing is loaded.
            epoch: the epoch to load; None loads ``model-best.pth.tar``.

        Raises:
            UserError: the file is missing or belongs to another model.
        """
        if not directory:
            print("No model is loaded, because no folder is given")
            return
        file_name = BEST_MODEL if epoch is None else f"model.pth.tar-{epoch}"
        for name in self.get_model_names():
            path = Path(directory, name, file_name)
            if not path.is_file():
                found = sorted(file.name for file in path.parent.glob("model*.pth.tar*"))
                if not found:
                    raise UserError(
                        f"{directory} holds no model {name!r}: give the output folder of a training"
                    )
                raise UserError(
                    f"no model at {path} (choose with --model-dir and --load-epoch; "
                    f"in that folder: {', '.join(found)})"
                )
            checkpoint = load_checkpoint(path)
            try:
                check_classes(checkpoint["state_dict"], self._models[name])
                self._models[name].load_state_dict(checkpoint["state_dict"])
            except (KeyError, RuntimeError, ValueError) as error:
                reason = " ".join(str(error).split())
                raise UserError(f"{path} does not fit the model {name}: {reason}") from error
            print(
                f"Load {path} to {name} (epoch={checkpoint.get('epoch')}, "
                f"val_result={checkpoint.get('val_result')})"
            )

    def set_model_mode(self, mode: str = "train", names: Names = None) -> None:
        """Set models to the mode ``"train"``, ``"test"`` or ``"eval"``; the last two are equal.

        Raises:
            KeyError: the mode is unknown.
        """
        if mode not in ("train", "test", "eval"):
            raise KeyError(f"unknown mode {mode!r}: use 'train', 'test' or 'eval'")
        for name in self.get_model_names(names):
            self._models[name].train(mode == "train")

    def update_lr(self, names: Names = None) -> None:
        """Step the schedules; hosts call this method after the last batch of an epoch."""
        for name in self.get_model_names(names):
            sched = self._scheds[name]
            if sched is not None:
                sched.step()

    def detect_anomaly(self, loss: Tensor) -> None:
        """Check that a loss is finite; on a GPU, at the end of the next step.

        Raises:
            FloatingPointError: the loss is infinite or NaN.
        """
        expect_finite(self, loss, "Loss is infinite or NaN!")

    def init_writer(self, log_dir: str) -> None:
        """Open the TensorBoard writer, if it is not open."""
        if self._writer is None and distributed.is_main():
            print(f"Initialize tensorboard (log_dir={log_dir})")
            self._writer = SummaryWriter(log_dir=log_dir)

    def close_writer(self) -> None:
        """Close the TensorBoard writer, if it is open."""
        if self._writer is not None:
            self._writer.close()

    def write_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        """Write a number to TensorBoard, if the writer is open."""
        if self._writer is not None:
            self._writer.add_scalar(tag, scalar_value, global_step)

    def train(self, start_epoch: int, max_epoch: int) -> None:
        """Train from ``start_epoch`` to ``max_epoch``, in the order of the class's docstring."""
        self.start_epoch = start_epoch
        self.max_epoch = max_epoch
        self.before_train()  # may set start_epoch, to resume
        self.epoch = max(self.epoch, self.start_epoch - 1)  # no epoch may be left
        for epoch in range(self.start_epoch, self.max_epoch):
            if self.stops_after(epoch):
                break
            self.epoch = epoch
            self.before_epoch()
            self.run_epoch()
            self.after_epoch()
        self.after_train()

    def stops_after(self, epochs: int) -> bool:
        """Return whether to end the training, which has finished a number of epochs, early."""
        return False

    def before_train(self) -> None:
        """Run once before the first epoch."""

    def after_train(self) -> None:
        """Run once after the last epoch."""

    def before_epoch(self) -> None:
        """Run before each epoch."""

    def after_epoch(self) -> None:
        """Run after each epoch."""

    def run_epoch(self) -> None:
        """Run an epoch."""
        raise NotImplementedError

    def forward_backward(self, batch: dict[str, Any]) -> Mapping[str, float | Tensor] | None:
        """Train on a batch; return the numbers of the log line, such as loss and accuracy."""
        raise NotImplementedError

    def model_inference(self, input: Tensor) -> Tensor:
        """Return the logits of a batch of images."""
        raise NotImplementedError

    def model_zero_grad(self, names: Names = None) -> None:
        """Clear the gradients of models that have an optimiser."""
        for name in self.get_model_names(names):
            optim = self._optims[name]
            if optim is not None:
                optim.zero_grad()

    def model_backward(self, loss: Tensor) -> None:
        """Check that a loss is finite, and compute its gradients."""
        self.detect_anomaly(loss)
        loss.backward()

    def model_update(self, names: Names = None) -> None:
        """Step the optimisers."""
        for name in self.get_model_names(names):
            optim = self._optims[name]
            if optim is not None:
                optim.step()

    def model_backward_and_update(self, loss: Tensor, names: Names = None) -> None:
        """Clear the gradients, compute those of ``loss``, and step the optimisers."""
        self.model_zero_grad(names)
        self.model_backward(loss)
        self.model_update(names)

    def prograd_backward_and_update(
        self, loss_a: Tensor, loss_b: Tensor, lambda_: float = 1, names: Names = None
    ) -> None:
        """Step along the gradient of ``loss_a`` where it does not raise ``loss_b``.

        A method of the Dassl that ProGrad's repository ships (arXiv 2205.14865). For each
        parameter, if its gradients a of ``loss_a`` and b of ``loss_b`` point apart (a·b < 0), a
        becomes a − λ (a·b / |b|²) b. A parameter that ``loss_b`` does not reach keeps its a.
        """
        models = [self._models[name] for name in self.get_model_names(names)]
        parameters = [parameter for model in models for parameter in model.parameters()]
        self.model_zero_grad(names)
        self.detect_anomaly(loss_b)
        loss_b.backward(retain_graph=True)
        of_b = [None if p.grad is None else p.grad.clone() for p in parameters]
        self.model_zero_grad(names)
        self.model_backward(loss_a)
        for parameter, b in zip(parameters, of_b, strict=True):
            a = parameter.grad
            if a is not None and b is not None and (along := (a * b).sum()) < 0:
                parameter.grad = a - lambda_ * along / b.square().sum() * b
        self.model_update(names)

"""A run of CoOp and its relatives: loaders, model, training and checkpoints."""

from __future__ import annotations

import datetime
import itertools
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from yacs.config import CfgNode

from ...config.record import write_record
from ...config.same_run import check_same_model, check_same_run, note_other_training
from ...errors import UserError
from ...files.checkpoint_folder import BEST_MODEL
from ...files.run_events import rewind
from ...process import distributed
from ...process.data_parallel import refuse_data_parallel, without_data_parallel
from ...process.gradients import GradientAverage, trained_parameters
from ...process.randomness import share_randomness
from ..class_contexts import check_contexts
from ..data import DataManager
from ..evaluation import build_evaluator
from ..saved_weights import are_saved
from ..scalar_writers import check_loggers, open_writers
from ..utils.tools import mkdir_if_missing
from ..utils.torchtools import load_checkpoint, parameters_in_words
from ..validation import EarlyStop, check_validation
from .base import Names
from .tested import Tested


class SimpleTrainer(Tested):
    """A run on one data set: loaders, model, evaluator, checkpoints and test.

    A subclass (here called a host) overrides two methods: :meth:`build_model` sets ``self.model``
    and calls :meth:`register_model`; :meth:`forward_backward` trains on a batch. For other programs
    a run writes ``events.jsonl`` and ``results.json``: see ``files/run_events.py``.
    """

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.check_cfg(cfg)
        check_loggers(cfg)  # now, because a missing package would cost the time of building
        use_cuda = cfg.USE_CUDA and torch.cuda.is_available()
        self.device = torch.device("cuda" if use_cuda else "cpu")
        self.cfg = cfg
        self.max_epoch = cfg.OPTIM.MAX_EPOCH
        self.output_dir = cfg.OUTPUT_DIR
        if distributed.is_launched() and cfg.SEED < 0:
            raise UserError(
                "give --seed: without a seed each process would choose different training images"
            )
        distributed.start(cfg.USE_CUDA)
        with distributed.main_first():  # the data set may write itself
            self.build_data_loader()
        share_randomness()
        self.build_model()
        if distributed.is_started():
            self._synchronise()
        self.evaluator = build_evaluator(cfg, lab2cname=self.lab2cname)
        self.best_result = -math.inf
        self._early_stop = EarlyStop(cfg.TRAIN.PATIENCE)
        self.is_trained, self.is_saved = False, True
        self.loaded_from, self.loaded_epoch = "", None
        # Here, because hosts have methods of their own.
        self.load_model = partial(self._load_compared, self.load_model)  # type: ignore[method-assign]
        self.test = partial(self._test_recorded, self.test)  # type: ignore[method-assign]

    def _load_compared(
        self, load: Callable[..., Any], directory: str, *args: Any, **kwargs: Any
    ) -> Any:
        """Call the host's ``load_model``; the settings must be those of the loaded model."""
        try:
            loaded = load(directory, *args, **kwargs)
        except (RuntimeError, UserError):  # other shapes or names of files: of another trainer?
            self._check_same_model(directory)
            raise
        self.loaded_from, self.is_saved = directory, True
        self.loaded_epoch = kwargs.get("epoch", args[0] if args else None)
        if directory:  # after the checkpoint, whose shapes tell more faults
            self._check_same_model(directory)
            check_contexts(self, directory, self._class_names())
            note_other_training(self.recorded_cfg, directory)
        return loaded

    def _check_same_model(self, directory: str) -> None:
        nodes = [getattr(self, "node", ""), *getattr(self, "further_nodes", ())]
        check_same_model(self.recorded_cfg, directory, type(self), nodes)

    def _class_names(self) -> list[str]:
        """Return the class names in the order of their labels; users' data sets may have none."""
        return [name for _, name in sorted(self.lab2cname.items())]

    def _synchronise(self) -> None:
        """Give all processes the weights of the main process, and average their gradients."""
        self.model = without_data_parallel(self.model)
        for name, model in self._models.items():
            self._models[name] = model = without_data_parallel(model)
            refuse_data_parallel(model, type(self).__name__)
            for tensor in itertools.chain(model.parameters(), model.buffers()):
                distributed.copy_from_main(tensor)
        GradientAverage(trained_parameters(self._optims.values()))

    def check_cfg(self, cfg: CfgNode) -> None:
        """Check that the configuration suits this trainer."""

    def build_data_loader(self) -> None:
        """Set ``dm``, the loaders and the attributes of the classes."""
        self.dm = DataManager(self.cfg)
        self.train_loader_x = self.dm.train_loader_x
        self.train_loader_u = self.dm.train_loader_u
        self.val_loader = self.dm.val_loader
        self.test_loader = self.dm.test_loader
        self.num_classes = self.dm.num_classes
        self.num_source_domains = self.dm.num_source_domains
        self.lab2cname = self.dm.lab2cname

    def build_model(self) -> None:
        """Set ``self.model`` and register its trained part."""
        raise NotImplementedError

    def train(self) -> None:  # type: ignore[override]
        """Train for ``OPTIM.MAX_EPOCH`` epochs; resume from the last checkpoint, if any."""
        super().train(self.start_epoch, self.max_epoch)

    @property
    def recorded_cfg(self) -> CfgNode:
        """The configuration that ``config.yaml`` records."""
        return self.cfg

    def before_train(self) -> None:
        """Resume from the last checkpoint, if there is one, and open the writer."""
        check_validation(self)
        if self.max_epoch <= self.cfg.OPTIM.WARMUP_EPOCH:
            print(
                f"Note: the warm-up (OPTIM.WARMUP_EPOCH {self.cfg.OPTIM.WARMUP_EPOCH}) takes all "
                f"epochs (OPTIM.MAX_EPOCH {self.max_epoch}): none has the rate OPTIM.LR"
            )
        if self.cfg.TEST.SPLIT == "val" and self.cfg.TEST.FINAL_MODEL == "best_val":
            print(
                "Note: the validation images choose the epoch (TEST.FINAL_MODEL best_val) and are "
                "tested (TEST.SPLIT val), so the accuracy is too high"
            )
        directory = self.cfg.RESUME or self.output_dir
        # The train.py of this repository has looked, before it wrote anything; others have not.
        check_same_run(self.recorded_cfg, directory)
        self.start_epoch = self.resume_model_if_exist(directory)
        if len(set(distributed.gathered(self.start_epoch))) > 1:
            raise UserError(
                f"some processes do not see the checkpoints in {directory}: use a shared folder"
            )
        if self.start_epoch >= self.max_epoch > 0:
            print(f"All {self.max_epoch} epochs are finished: nothing is trained, only tested")
        rewind(self.output_dir, self.start_epoch)
        self._restore_best_result(directory)
        if directory == self.output_dir or self.start_epoch == self.max_epoch:
            self._save_missing_checkpoint()
        for name in self.get_model_names():  # now, so that an error here costs no epoch
            mkdir_if_missing(Path(self.output_dir, name))
        write_record(self.recorded_cfg, self.output_dir, self._class_names())
        data_set: Any = getattr(getattr(self, "dm", None), "dataset", None)
        if hasattr(data_set, "write_draw"):  # of this package, with few-shot images
            data_set.write_draw()
        open_writers(self)
        own = (value for value in vars(self).values() if isinstance(value, nn.Module))
        parts = itertools.chain(self._models.values(), own)
        everything = itertools.chain.from_iterable(part.parameters() for part in parts)
        print(parameters_in_words(trained_parameters(self._optims.values()), everything))
        self.time_start = time.time()

    def _restore_best_result(self, directory: str) -> None:
        # Without this the first epoch after resuming would always count as the best. A best
        # checkpoint of a later epoch, or of some models only, will be written again.
        paths = [Path(directory, name, BEST_MODEL) for name in self.get_model_names()]
        if not all(path.is_file() for path in paths):
            return
        best = [load_checkpoint(path) for path in paths]
        epoch, val_result = max(one["epoch"] for one in best), best[0].get("val_result")
        if epoch <= self.start_epoch and isinstance(val_result, float):
            self.best_result = val_result
            self._early_stop.note(val_result, epoch)

    def _save_missing_checkpoint(self) -> None:
        """Write the last epoch's checkpoint where it is missing.

        A run was killed between the best checkpoint and it, or a finished one goes on elsewhere.
        """
        done = self.start_epoch
        name = f"model.pth.tar-{done}"
        paths = [Path(self.output_dir, model, name) for model in self.get_model_names()]
        if done and self._is_due(done) and not all(path.exists() for path in paths):
            self.save_model(done - 1, self.output_dir)

    def _is_due(self, done: int) -> bool:
        frequency = self.cfg.TRAIN.CHECKPOINT_FREQ
        return done == self.max_epoch or (frequency > 0 and done % frequency == 0)

    def stops_after(self, epochs: int) -> bool:
        """Return whether the validation has not improved for ``TRAIN.PATIENCE`` epochs.

        The last epoch is saved then, so that the run resumes as finished.
        """
        stop = self._early_stop
        stop.note(self.best_result, epochs)
        if not stop.is_due(epochs):
            return False
        if epochs > self.start_epoch and not self._is_due(epochs):
            self.save_model(epochs - 1, self.output_dir)
        print(f"Stop early: no epoch after epoch {stop.best_epoch} was better in validation")
        return True

    def after_train(self) -> None:
        """Test, unless ``TEST.NO_TEST`` is set, and print the time of the run."""
        print("Finish training")
        self.is_trained, self.loaded_from = True, ""
        if not self.cfg.TEST.NO_TEST:
            if self.cfg.TEST.FINAL_MODEL == "best_val":
                print("Deploy the model with the best val performance")
                self.load_model(self.output_dir)
            else:
                print("Deploy the last-epoch model")
                self.is_saved = are_saved(self)
            self.test()
        elapsed = datetime.timedelta(seconds=round(time.time() - self.time_start))
        print(f"Elapsed: {elapsed}")
        self.close_writer()

    def after_epoch(self) -> None:
        """Save a checkpoint if one is due; with ``best_val``, validate and save the best one."""
        done = self.epoch + 1
        if self.cfg.TEST.FINAL_MODEL == "best_val" and not self.cfg.TEST.NO_TEST:
            result = self.test(split="val")
            if result > self.best_result:
                self.best_result = result
                self.save_model(
                    self.epoch, self.output_dir, val_result=result, model_name=BEST_MODEL
                )
        if self._is_due(done):
            self.save_model(self.epoch, self.output_dir)

    def get_current_lr(self, names: Names = None) -> float:
        """Return the learning rate of the first model's first parameter group."""
        optim = self._optims[self.get_model_names(names)[0]]
        if optim is None:
            raise ValueError("the model has no optimiser, so it has no learning rate")
        return optim.param_groups[0]["lr"]

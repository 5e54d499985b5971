"""A data set of small images and a linear trainer, for the tests of the runtime."""

from __future__ import annotations

import random

import numpy as np
import pytest
from PIL import Image
from torch import nn
from torch.nn import functional as F

import anchoropt_plugin  # noqa: F401  (makes `import dassl` work)
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer

CLASSES = ("dark", "middle", "bright")
PER_CLASS = {"train": 6, "val": 2, "test": 4}


@DATASET_REGISTRY.register(force=True)
class GreyImages(DatasetBase):
    """Noisy images in three shades of grey, under ``DATASET.ROOT/<part>/<class>``."""

    def __init__(self, cfg):
        parts = {
            part: [
                Datum(f"{cfg.DATASET.ROOT}/{part}/{name}/{i}.png", label, 0, name)
                for label, name in enumerate(CLASSES)
                for i in range(count)
            ]
            for part, count in PER_CLASS.items()
        }
        super().__init__(train_x=parts["train"], val=parts["val"], test=parts["test"])


@TRAINER_REGISTRY.register(force=True)
class LinearProbe(TrainerX):
    """Logistic regression on pixels; dropout and ``random`` imitate a host's random numbers."""

    def build_model(self):
        self.model = nn.Sequential(nn.Flatten(), nn.Dropout(0.1), nn.Linear(3 * 8 * 8, 3))
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("linear", self.model, self.optim, self.sched)
        self.rates = []

    def forward_backward(self, batch):
        images, labels, _ = self.parse_batch_train(batch)
        logits = self.model(images * random.uniform(0.9, 1.1))
        loss = F.cross_entropy(logits, labels)
        self.model_backward_and_update(loss)
        self.rates.append(self.get_current_lr())
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item(), "acc": compute_accuracy(logits, labels)[0].item()}


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """The image folder of GreyImages."""
    root = tmp_path_factory.mktemp("grey")
    rng = np.random.default_rng(0)
    for part, count in PER_CLASS.items():
        for label, name in enumerate(CLASSES):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                shade = 60 + 60 * label + rng.integers(-25, 25, (10, 12, 3))
                Image.fromarray(shade.astype(np.uint8)).save(folder / f"{i}.png")
    return root


@pytest.fixture
def cfg(images, tmp_path):
    """A configuration of LinearProbe on GreyImages: 4 epochs of 4 batches on the CPU."""
    cfg = get_cfg_default()
    cfg.OUTPUT_DIR = str(tmp_path / "out")
    cfg.SEED = 3
    cfg.USE_CUDA = False
    cfg.DATASET.NAME, cfg.DATASET.ROOT = "GreyImages", str(images)
    cfg.TRAINER.NAME = "LinearProbe"
    cfg.INPUT.SIZE = (8, 8)
    cfg.INPUT.TRANSFORMS = ("random_resized_crop", "random_flip", "normalize")
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATALOADER.TRAIN_X.BATCH_SIZE = 4
    cfg.DATALOADER.TEST.BATCH_SIZE = 5
    cfg.OPTIM.NAME, cfg.OPTIM.LR, cfg.OPTIM.MAX_EPOCH = "sgd", 0.1, 4
    cfg.OPTIM.LR_SCHEDULER, cfg.OPTIM.WARMUP_EPOCH = "cosine", 1
    cfg.OPTIM.WARMUP_TYPE, cfg.OPTIM.WARMUP_CONS_LR = "constant", 0.001
    cfg.TRAIN.PRINT_FREQ = 2
    return cfg

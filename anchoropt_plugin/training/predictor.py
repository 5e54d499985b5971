"""From an output folder to the classes of pictures: the numbers that a test would have computed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..config.record import CLASSES, RECORD, merge_record
from ..errors import UserError, nearest
from ..files.checkpoint_folder import last_checkpoint_name
from ..files.readers import read_image, read_json, to_rgb
from .run_record import RECORD as TWO_STAGES_RECORD
from .run_record import read_record
from .settings import extend_cfg
from .trainer_registry import two_stages_on_demand
from .two_stages import TwoStages
from .without_data import without_data

Picture = str | Path | Image.Image


class Predictor:
    """A trained model, and the names of its classes; ``load_predictor`` makes one.

    Attributes:
        classes: names of the C classes, in the order of their labels; some may share a name.
        batch_size: pictures encoded at once, ``DATALOADER.TEST.BATCH_SIZE``.
    """

    def __init__(self, trainer: Any) -> None:
        from dassl.data.transforms import build_transform

        self.classes: list[str] = list(trainer.dm.dataset.classnames)
        self.batch_size: int = trainer.cfg.DATALOADER.TEST.BATCH_SIZE
        self._trainer = trainer
        self._transform = build_transform(trainer.cfg, is_train=False)
        trainer.set_model_mode("eval")

    def __call__(self, picture: Picture) -> dict[str, float]:
        """The probabilities of a picture by class name, the most likely one first.

        Raises:
            UserError: the picture cannot be read.
        """
        return self.by_name(self.probabilities([picture])[0])

    def by_name(self, probabilities: Tensor) -> dict[str, float]:
        """Probabilities (C) by class name, the most likely one first.

        Classes of one name, as ImageNet has them, are one here, with the sum of theirs.
        """
        sums: dict[str, float] = {}
        for name, probability in zip(self.classes, probabilities.tolist(), strict=True):
            sums[name] = sums.get(name, 0.0) + probability
        return dict(sorted(sums.items(), key=lambda entry: entry[1], reverse=True))

    @torch.no_grad()
    def probabilities(self, pictures: Sequence[Picture]) -> Tensor:
        """Probabilities (n, C) of n pictures, paths or PIL images: float32, on the CPU.

        Raises:
            UserError: a picture cannot be read.
        """
        starts = range(0, len(pictures), self.batch_size)
        parts = [self._batch(pictures[start : start + self.batch_size]) for start in starts]
        return torch.cat(parts) if parts else torch.zeros(0, len(self.classes))

    def _batch(self, pictures: Sequence[Picture]) -> Tensor:
        images = [to_rgb(x) if isinstance(x, Image.Image) else read_image(x) for x in pictures]
        zeros = torch.zeros(len(images), dtype=torch.long)
        batch = {
            "img": torch.stack([self._transform(image) for image in images]),
            "label": zeros,
            "domain": zeros,
            "impath": [""] * len(images),
            "index": zeros,
        }
        inputs = self._trainer.parse_batch_test(batch)[0]
        return self._trainer.model_inference(inputs).float().softmax(-1).cpu()


def load_predictor(
    model_dir: str | Path, classes: Sequence[str] | None = None, epoch: int | None = None
) -> Predictor:
    """Load what a run has trained.

    Args:
        model_dir: the run's output folder, with ``config.yaml`` and checkpoints.
        classes: names of the classes to choose from, which need not be those of the run: as at
            test, ``_AnchorOPT`` averages with the anchors' logits where one was not trained on.
            None: the run's own, from ``classes.json``.
        epoch: of which epoch; None: the one that the run tests at its end.

    Returns:
        The predictor, with its model in eval mode.

    Raises:
        UserError: the folder holds no such run or checkpoint; its trainer is not registered (import
            its module first); the classes do not fit.

    Example::

        import trainers  # registers this repository's trainers
        from anchoropt_plugin import load_predictor

        predictor = load_predictor("output/base")
        predictor("cat.jpg")  # {"cat": 0.93, "dog": 0.05, ...}
    """
    folder = Path(model_dir)
    cfg = _recorded_cfg(folder)
    names = _named(_recorded_classes(folder) if classes is None else list(classes))
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice and classes is not None:  # a data set may have several, as ImageNet has
        raise UserError(f"the class {twice[0]!r} was given more than once")
    trainer = without_data(_trainer_class(cfg.TRAINER.NAME), names)(cfg)
    epoch = _tested_epoch(trainer, folder) if epoch is None else epoch
    try:
        trainer.load_model(str(folder), epoch=epoch)
    except (KeyError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{folder} does not fit {cfg.TRAINER.NAME}: {reason}") from error
    if isinstance(trainer, TwoStages) and not trainer.anchoropt.has_anchors:
        raise UserError(
            f"the checkpoint in {folder} has no anchors: it is the host's own; give a folder that "
            f"{cfg.TRAINER.NAME} was trained in"
        )
    return Predictor(trainer)


def _recorded_cfg(folder: Path) -> Any:
    """The configuration that a run was trained with."""
    from dassl.config import get_cfg_default

    if not (folder / RECORD).is_file():
        raise UserError(
            f"{folder} has no {RECORD}: give the output folder of a run of train.py here, or of an "
            "_AnchorOPT trainer"
        )
    cfg = get_cfg_default()
    extend_cfg(cfg)
    merge_record(cfg, folder)
    cfg.MODEL.INIT_WEIGHTS = ""  # the checkpoint has all that was trained
    if (folder / TWO_STAGES_RECORD).is_file():
        # config.yaml does not tell given values from defaults, which @anchoropt's arguments change.
        record = read_record(folder / TWO_STAGES_RECORD)
        for name, value in record["settings"].items():
            cfg.TRAINER.ANCHOROPT[name.upper()] = value
    cfg.freeze()
    return cfg


def _recorded_classes(folder: Path) -> list[str]:
    if not (folder / CLASSES).is_file():
        raise UserError(f"{folder} has no {CLASSES}: name the classes")
    names = read_json(folder / CLASSES)
    if not isinstance(names, list):
        raise UserError(f"{folder / CLASSES} is not a list of class names: name the classes")
    return names


def _named(names: list[str]) -> list[str]:
    """The class names, where each is one."""
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise UserError("a class without a name was given: name one at least, and each of them")
    return names


def _trainer_class(name: str) -> type:
    from dassl.engine import TRAINER_REGISTRY

    with two_stages_on_demand():
        known = [*TRAINER_REGISTRY.registered_names()]
        if name not in known:
            raise UserError(
                f"the run's trainer {name!r} is not registered{nearest(name, known)}: import its "
                "module first (predict: --import MODULE); registered: "
                f"{', '.join(sorted(known)) or 'none'}"
            )
        trainer: type = TRAINER_REGISTRY.get(name)
    return trainer


def _tested_epoch(trainer: Any, folder: Path) -> int | None:
    """The epoch of the last checkpoint, or None for the best one: what the run itself tests."""
    if trainer.cfg.TEST.FINAL_MODEL == "best_val":
        return None
    last = folder / trainer.get_model_names()[0] / "checkpoint"
    number = (
        re.search(r"-(\d{1,9})$", last_checkpoint_name(last.parent)) if last.is_file() else None
    )
    if number is None:
        raise UserError(f"{last} names no checkpoint: give the epoch to load")
    return int(number[1])

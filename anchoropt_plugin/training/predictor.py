"""From an output folder to the classes of images, with the probabilities of a test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..config.record import CLASSES, RECORD, final_epoch, merge_record
from ..encoders.clip_models import first_twins, words_of
from ..errors import UserError, nearest
from ..files.images import read_image, to_rgb
from ..files.readers import read_json
from .run_record import RUN_RECORD, read_record
from .settings import extend_cfg
from .trainer_registry import two_stages_on_demand
from .two_stages import TwoStages
from .without_data import without_data

ImageLike = str | Path | Image.Image


class Predictor:
    """A trained model and its class names; ``load_predictor`` makes one.

    Attributes:
        classes: C class names in the order of their labels; classes may share a name.
        batch_size: images encoded at once, ``DATALOADER.TEST.BATCH_SIZE``.
    """

    def __init__(self, trainer: Any) -> None:
        from dassl.data.transforms import build_transform

        self.classes: list[str] = list(trainer.dm.dataset.classnames)
        self.batch_size: int = trainer.cfg.DATALOADER.TEST.BATCH_SIZE
        self._trainer = trainer
        self._transform = build_transform(trainer.cfg, is_train=False)
        trainer.set_model_mode("eval")

    def __call__(self, image: ImageLike) -> dict[str, float]:
        """Return the probabilities of an image by class name, the most likely class first.

        Raises:
            UserError: the image cannot be read.
        """
        return self.by_name(self.probabilities([image])[0])

    def by_name(self, probabilities: Tensor) -> dict[str, float]:
        """Return probabilities (C,) by class name, the most likely class first.

        Classes that share a name, as in ImageNet, are added up.
        """
        sums: dict[str, float] = {}
        for name, probability in zip(self.classes, probabilities.tolist(), strict=True):
            sums[name] = sums.get(name, 0.0) + probability
        return dict(sorted(sums.items(), key=lambda entry: entry[1], reverse=True))

    @torch.no_grad()
    def probabilities(self, images: Sequence[ImageLike]) -> Tensor:
        """Return probabilities (n, C) of n paths or PIL images: float32, on the CPU.

        Raises:
            UserError: an image cannot be read.
        """
        starts = range(0, len(images), self.batch_size)
        parts = [self._batch(images[start : start + self.batch_size]) for start in starts]
        return torch.cat(parts) if parts else torch.zeros(0, len(self.classes))

    def _batch(self, images: Sequence[ImageLike]) -> Tensor:
        rgb = [
            to_rgb(x, upright=True) if isinstance(x, Image.Image) else read_image(x, upright=True)
            for x in images
        ]
        zeros = torch.zeros(len(rgb), dtype=torch.long)
        batch = {
            "img": torch.stack([self._transform(image) for image in rgb]),
            "label": zeros,
            "domain": zeros,
            "impath": [""] * len(rgb),
            "index": zeros,
        }
        inputs = self._trainer.parse_batch_test(batch)[0]
        return self._trainer.model_inference(inputs).float().softmax(-1).cpu()


def load_predictor(
    model_dir: str | Path, classes: Sequence[str] | None = None, epoch: int | None = None
) -> Predictor:
    """Load the model that a run trained.

    Args:
        model_dir: the run's output folder, with ``config.yaml`` and checkpoints.
        classes: class names to choose from; None takes those of the run, from ``classes.json``.
            They may differ from the run's: as at test, ``_AnchorOPT`` averages with the anchor
            logits if a class was not trained.
        epoch: epoch of the checkpoint; None takes the one that the run tests at its end.

    Returns:
        The predictor, its model in eval mode.

    Raises:
        UserError: the folder holds no such run or checkpoint, its trainer is not registered (import
            its module first), or the classes do not fit.

    Example::

        import trainers  # registers this repository's trainers
        from anchoropt_plugin import load_predictor

        predictor = load_predictor("output/base")
        predictor("cat.jpg")  # {"cat": 0.93, "dog": 0.05, ...}
    """
    if isinstance(classes, str):  # a sequence of letters
        raise UserError(f"the class names are the str {classes!r}: give a list of names")
    folder = Path(model_dir).expanduser()
    cfg = _recorded_cfg(folder)
    names = _named(_recorded_classes(folder) if classes is None else list(classes))
    twins = None if classes is None else first_twins(names)  # ImageNet has two of one name
    if twins:
        first, second = (names[place] for place in twins)
        raise UserError(f"the classes {first!r} and {second!r} are one to CLIP: give one of them")
    trainer = without_data(_trainer_class(cfg.TRAINER.NAME), names)(cfg)
    if epoch is None:
        epoch = final_epoch(folder, trainer.get_model_names()[0])
    try:
        trainer.load_model(str(folder), epoch=epoch)
    except (KeyError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{folder} does not fit {cfg.TRAINER.NAME}: {reason}") from error
    if isinstance(trainer, TwoStages) and not trainer.anchoropt.has_anchors:
        raise UserError(
            f"the checkpoint in {folder} has no anchors, it belongs to the plain host: give the "
            f"output folder of a run of {cfg.TRAINER.NAME}"
        )
    return Predictor(trainer)


def _recorded_cfg(folder: Path) -> Any:
    """Return the configuration that a run was trained with."""
    from dassl.config import get_cfg_default

    if not (folder / RECORD).is_file():
        raise UserError(
            f"{folder} has no {RECORD}: give the output folder of a run of this repository's "
            "train.py, or of an _AnchorOPT trainer"
        )
    cfg = get_cfg_default()
    extend_cfg(cfg)
    merge_record(cfg, folder)
    cfg.MODEL.INIT_WEIGHTS = ""  # the checkpoint holds everything that was trained
    if (folder / RUN_RECORD).is_file():
        # config.yaml does not say which values were given, but arguments of @anchoropt change only
        # the others.
        record = read_record(folder / RUN_RECORD)
        for name, value in record["settings"].items():
            cfg.TRAINER.ANCHOROPT[name.upper()] = value
    cfg.freeze()
    return cfg


def _recorded_classes(folder: Path) -> list[str]:
    if not (folder / CLASSES).is_file():
        raise UserError(f"{folder} has no {CLASSES}: give the class names (predict: --classes)")
    names = read_json(folder / CLASSES)
    if not isinstance(names, list):
        raise UserError(
            f"{folder / CLASSES} is not a list of class names: give them (predict: --classes)"
        )
    return names


def _named(names: list[str]) -> list[str]:
    """Return the class names; raise ``UserError`` if one is empty."""
    if not names or not all(isinstance(name, str) and words_of(name) for name in names):
        raise UserError("a class without a name was given: give one or more names, none empty")
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

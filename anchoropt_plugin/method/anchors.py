"""Stage 1: learn anchor tokens from the task's class descriptions; save and load them."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from numbers import Integral
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..encoders.class_names import as_words
from ..encoders.clip_models import tokenize
from ..encoders.equivalence import tower_of
from ..encoders.text_tower import TextTower
from ..errors import UserError
from ..files import checkpoints
from .anchor_prompts import AnchorPrompts
from .descriptions import of_classes

log = logging.getLogger("anchoropt_plugin")


PUBLISHED_NAME = "anchor_ctx_1"
"""Name of the tokens in published checkpoints; our files have the same layout."""
PUBLISHED_FILE = Path("anchor_prompt_learner", "model.pth.tar")

MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
WARMUP_LR = 1e-5
INIT_STD = 0.02
SENTENCES = 512
"""Descriptions encoded at once."""

ImageBatches = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Returns one epoch of (L2-normalised image features (B, e), labels (B,))."""


class LossNotFiniteError(UserError):
    """The loss of stage 1 is infinite or NaN."""


@dataclass(frozen=True)
class StageOne:
    """Settings of stage 1, besides the backbone, the class names and the descriptions.

    Attributes:
        length: number K of anchor tokens.
        epochs: number of epochs; the first is the warm-up.
        steps: steps an epoch; in published runs, the batches of the few-shot loader.
        lr: learning rate of SGD, on a cosine.
        mse_weight: weight of the distance to the descriptions.
        ce_weight: weight of a cross-entropy on images; 0 or 1 in the published logs.

    Raises:
        ValueError: a number that stage 1 cannot run with; all are named.
    """

    length: int = 1
    epochs: int = 100
    steps: int = 1
    lr: float = 0.002
    mse_weight: float = 1000.0
    ce_weight: float = 0.0

    def __post_init__(self) -> None:
        faults = [
            f"{name} is {value}: give an integer from 1"
            for name, value in vars(self).items()
            if name in ("length", "epochs", "steps")
            and not (isinstance(value, Integral) and int(value) > 0)
        ]
        for name, value in (("lr", self.lr), ("mse_weight", self.mse_weight)):
            if not 0 < value < math.inf:
                faults.append(f"{name} is {value}: give a positive number")
        if not 0 <= self.ce_weight < math.inf:
            faults.append(f"ce_weight is {self.ce_weight}: give 0 or a positive number")
        if faults:
            raise ValueError(f"StageOne: {'; '.join(faults)}")

    def lr_at(self, epoch: int) -> float:
        """Return the learning rate of an epoch: warm-up, then a cosine one epoch late.

        >>> StageOne(epochs=4, lr=1.0).lr_at(0), StageOne(epochs=4, lr=1.0).lr_at(3)
        (1e-05, 0.5)
        """
        if epoch == 0:
            return WARMUP_LR
        return self.lr * 0.5 * (1 + round(math.cos(math.pi * (epoch - 1) / self.epochs), 15))


@dataclass
class AnchorTokens:
    """Anchor tokens.

    Attributes:
        values: (K, d), float32, on the CPU.
        losses: the loss at each epoch of stage 1, if it was run.
        key: identifies the content they were learned from, or "".
    """

    values: Tensor
    losses: list[float] = field(default_factory=list)
    key: str = ""

    def __repr__(self) -> str:
        count, width = self.values.shape
        learned = ""
        if self.losses:
            first, last = self.losses[0], self.losses[-1]
            learned = f", {len(self.losses)} epochs, loss {first:.4g} → {last:.4g}"
        return f"{type(self).__name__}({count} × {width}{learned})"

    @classmethod
    def learn(
        cls,
        tower: TextTower | nn.Module,
        class_names: Sequence[str],
        descriptions: Sequence[Sequence[str]] | Mapping[str, Sequence[str]],
        settings: StageOne | None = None,
        *,
        images: ImageBatches | None = None,
        on_epoch: Callable[[int, float], None] | None = None,
    ) -> AnchorTokens:
        """Learn anchor tokens so that ``[A] of {class}.`` is near the class's descriptions.

        The loss is ``mse_weight`` times the mean of (a_c − t_{c,m})² over classes, descriptions and
        features. It depends only on the mean of a class's descriptions, so each class has one
        target. No image is read unless ``ce_weight`` > 0. Anchors and loss stay in float32, and the
        gradient is scaled on its way through the tower, so that half precision neither overflows
        nor vanishes.

        The start is the same for every seed, so that seeds can share anchors.

        Args:
            tower: the plain CLIP, or its text tower; also a model of open_clip or a ``CLIPModel``
                of transformers.
            class_names: C names.
            descriptions: C lists of sentences, of any length, in the order of the names; or a dict
                of such lists by class name, as in a file of descriptions.
            settings: see ``StageOne``.
            images: epochs of image features; needed if ``ce_weight`` > 0.
            on_epoch: called with (epoch, loss) after each epoch.

        Raises:
            ValueError: the names are not a list of texts, the descriptions are not one list of
                texts for each class, or a list is empty. A set is refused: it has no order.
            UserError: a dict without a class, a text that is longer than CLIP reads, a loss that is
                not finite, a model that is no CLIP, or a text tower of another architecture than
                CLIP's.

        Source: AnchorOPT (Li et al., arXiv 2511.21188), stage 1.

        >>> from anchoropt_plugin import load_clip
        >>> tower = TextTower(load_clip("tiny"))
        >>> texts = [["a photo of a red circle."], ["a photo of a blue star."]]
        >>> anchors = AnchorTokens.learn(tower, ["circle", "star"], texts, StageOne(epochs=5))
        >>> tuple(anchors.values.shape), anchors.losses[-1] < anchors.losses[0]
        ((1, 128), True)
        """
        settings = settings or StageOne()
        tower = tower_of(tower)
        _check_names(class_names)
        if isinstance(descriptions, Mapping):
            descriptions = of_classes(descriptions, class_names, "the dict of descriptions")
        is_list = isinstance(descriptions, Sequence) and not isinstance(descriptions, str)
        for given in descriptions if is_list else [descriptions]:
            if not _is_texts(given):
                raise ValueError(
                    "descriptions must be one list of sentences per class, in the order of "
                    f"class_names, or a dict of such lists; got a {type(given).__name__}"
                )
        if len(descriptions) != len(class_names) or not all(descriptions):
            raise ValueError(
                f"{len(class_names)} classes and {len(descriptions)} lists of descriptions: "
                "expected one list of one or more sentences for each class"
            )
        # Under a caller's autocast, features and loss would be rounded.
        with torch.autocast(tower.device.type, enabled=False):
            return cls._learned(tower, class_names, descriptions, settings, images, on_epoch)

    @classmethod
    def _learned(
        cls,
        tower: TextTower,
        class_names: Sequence[str],
        descriptions: Sequence[Sequence[str]],
        settings: StageOne,
        images: ImageBatches | None,
        on_epoch: Callable[[int, float], None] | None,
    ) -> AnchorTokens:
        prompts = AnchorPrompts(tower, class_names, settings.length)
        targets, spread = _targets(tower, descriptions)
        start = torch.randn(settings.length, tower.dim, generator=torch.Generator().manual_seed(0))
        anchors = (INIT_STD * start).to(tower.device).requires_grad_()
        optimizer = torch.optim.SGD(
            [anchors], lr=settings.lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
        )
        # Scales the gradient of each text feature to about 1, well inside half precision.
        scale = targets.numel() / settings.mse_weight
        logit_scale = tower.clip.logit_scale.detach().exp().float()
        losses: list[float] = []
        for epoch in range(settings.epochs):
            optimizer.param_groups[0]["lr"] = settings.lr_at(epoch)
            batches = iter(images()) if images is not None and settings.ce_weight else None
            of_steps: list[Tensor] = []
            for _ in range(settings.steps):
                features = prompts.encode(anchors)
                loss = settings.mse_weight * ((features - targets).square().mean() + spread)
                if batches is not None:
                    image_features, labels = next(batches)
                    logits = logit_scale * image_features.float() @ features.t()
                    loss = loss + settings.ce_weight * F.cross_entropy(logits, labels)
                optimizer.zero_grad()
                (loss * scale).backward()
                assert anchors.grad is not None
                anchors.grad /= scale
                optimizer.step()
                of_steps.append(loss.detach())
            # One copy an epoch: to read each loss, the host would wait for the GPU at each step.
            losses.append(sum(torch.stack(of_steps).tolist()) / settings.steps)
            if not math.isfinite(losses[-1]):
                raise LossNotFiniteError(
                    f"stage 1: the loss of epoch {epoch + 1} is {losses[-1]}: lower lr or "
                    "mse_weight"
                )
            if on_epoch is not None:
                on_epoch(epoch, losses[-1])
        return cls(anchors.detach().cpu(), losses)

    @classmethod
    def random(cls, tower: TextTower | nn.Module, length: int) -> AnchorTokens:
        """Draw tokens from N(0, 0.02²), as soft tokens start: a control for stage 1."""
        return cls(INIT_STD * torch.randn(length, TextTower.of(tower).dim))

    @classmethod
    def of_words(cls, tower: TextTower | nn.Module, words: str, length: int) -> AnchorTokens:
        """Return the embeddings of ``words``, as a control for stage 1; ``_`` is read as a blank.

        Raises:
            UserError: the words are not ``length`` tokens.

        >>> from anchoropt_plugin import load_clip
        >>> AnchorTokens.of_words(TextTower(load_clip("tiny")), "photo", 1).values.shape
        torch.Size([1, 128])
        """
        tokens = tokenize([as_words(words)])
        found = int(tokens.argmax()) - 1
        if found != length:
            raise UserError(f"{words!r} is {found} tokens: give the length {found}, not {length}")
        embedded = TextTower.of(tower).embed(tokens)[0, 1 : 1 + length]
        return cls(embedded.detach().float().cpu())

    @torch.no_grad()
    def class_features(self, tower: TextTower | nn.Module, class_names: Sequence[str]) -> Tensor:
        """Return the features of the anchor prompts ``[A] of {class}.``: (C, e), float32, length 1.

        The scaled cosines of an image's feature with them are the anchor logits l_a.

        Args:
            tower: as in ``learn``.
            class_names: C names, also of other classes than those of stage 1.

        Raises:
            ValueError: the names are not a list of texts.
            UserError: a model that ``learn`` refuses.

        >>> from anchoropt_plugin import load_clip
        >>> anchors = AnchorTokens(torch.zeros(1, 128))
        >>> anchors.class_features(load_clip("tiny"), ["star", "ring"]).shape
        torch.Size([2, 128])
        """
        _check_names(class_names)
        tower = tower_of(tower)
        anchors = self.values.to(tower.device)
        with torch.autocast(tower.device.type, enabled=False):
            return AnchorPrompts(tower, class_names, len(anchors)).encode(anchors)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the anchors, whole or not at all, in the layout of published ones."""
        content = {
            "state_dict": {PUBLISHED_NAME: self.values},
            "epoch": len(self.losses),
            "optimizer": None,
            "scheduler": None,
            "val_result": None,
            "losses": self.losses,
            "key": self.key,
        }
        path = Path(path).expanduser()
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoints.save(content, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> AnchorTokens:
        """Read our anchors or published ones; no code in the file is run.

        Args:
            path: the file, or a folder with ``anchor_prompt_learner/model.pth.tar``.

        Raises:
            UserError: the file is missing, or holds no finite anchor tokens (K, d).
        """
        path = Path(path).expanduser()
        if path.is_dir():
            path = path / PUBLISHED_FILE
        content = checkpoints.load(path)
        values = content.get("state_dict", {}).get(PUBLISHED_NAME)
        if not isinstance(values, Tensor) or values.dim() != 2:
            raise UserError(
                f"{path} holds no anchor tokens: expected a tensor {PUBLISHED_NAME} (K, d)"
            )
        losses = content.get("losses")
        losses = losses if isinstance(losses, list) else []
        return cls(values.float(), losses, str(content.get("key", "")))


def _check_names(given: object) -> None:
    if not _is_texts(given):
        kind = type(given).__name__
        raise ValueError(f"class_names must be a list of names; got the {kind} {given!r}")


def _is_texts(given: object) -> bool:
    """Whether ``given`` is a list of texts; a text is a sequence of texts too, its letters."""
    if isinstance(given, str) or not isinstance(given, Sequence):
        return False
    return all(isinstance(text, str) for text in given)


def _targets(tower: TextTower, descriptions: Sequence[Sequence[str]]) -> tuple[Tensor, Tensor]:
    """Return mean description features (C, e), and the constant part of the loss.

    The mean over m of (a − t_m)² is (a − t̄)² plus the mean of t_m² − t̄², which is constant.
    Features of sentences are held only until their class is complete.
    """
    sentences = chain.from_iterable(descriptions)
    means, squares = [], []
    waiting = torch.empty(0, tower.clip.text_projection.shape[1], device=tower.device)
    for count in map(len, descriptions):
        while len(waiting) < count:
            batch = list(islice(sentences, SENTENCES))
            waiting = torch.cat([waiting, tower.encode_texts(batch)])
        features, waiting = waiting[:count], waiting[count:]
        means.append(features.mean(0))
        squares.append(features.square().mean(0))
    mean = torch.stack(means)
    return mean, (torch.stack(squares) - mean.square()).mean()

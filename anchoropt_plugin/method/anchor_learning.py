"""Stage 1: the optimisation that brings anchor prompts near the descriptions of their classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from numbers import Integral

import torch
from torch import Tensor
from torch.nn import functional as F

from ..encoders.text_tower import TextTower
from ..errors import UserError
from .anchor_prompts import AnchorPrompts

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


def learned(
    tower: TextTower,
    class_names: Sequence[str],
    descriptions: Sequence[Sequence[str]],
    settings: StageOne,
    images: ImageBatches | None,
    on_epoch: Callable[[int, float], None] | None,
) -> tuple[Tensor, list[float]]:
    """Return anchor tokens (K, d), on the CPU, and the loss of each epoch.

    The arguments are those of ``AnchorTokens.learn``, whose docstring has the objective.

    Raises:
        LossNotFiniteError: the loss of an epoch is not finite.
    """
    prompts = AnchorPrompts(tower, class_names, settings.length)
    targets, spread = _targets(tower, descriptions)
    generator = torch.Generator().manual_seed(0)
    shape = (settings.length, tower.dim)
    # A caller may have set another default dtype, which would also draw other numbers.
    start = torch.randn(shape, generator=generator, dtype=torch.float32)
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
                image_features, labels = map(_for_a_graph, next(batches))
                logits = logit_scale * image_features.float() @ features.t()
                loss = loss + settings.ce_weight * F.cross_entropy(logits, labels)
            # Of the anchors alone: the user's CLIP may have parameters that are trained.
            (gradient,) = torch.autograd.grad(loss * scale, anchors)
            anchors.grad = gradient / scale
            optimizer.step()
            of_steps.append(loss.detach())
        # One copy an epoch: to read each loss, the host would wait for the GPU at each step.
        losses.append(sum(torch.stack(of_steps).tolist()) / settings.steps)
        if not math.isfinite(losses[-1]):
            raise LossNotFiniteError(
                f"stage 1: the loss of epoch {epoch + 1} is {losses[-1]}: lower lr or mse_weight"
            )
        if on_epoch is not None:
            on_epoch(epoch, losses[-1])
    return anchors.detach().cpu(), losses


def _for_a_graph(made: Tensor) -> Tensor:
    # Autograd saves no tensor that was made in inference mode, as image features may be.
    return made.clone() if made.is_inference() else made


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

"""Compare a step with AnchorOPT's definition, computed apart: OpenAI's own CLIP, in float64."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator, Sequence
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...encoders.class_names import as_words
from ...encoders.clip_models import tokenize
from ...errors import UserError
from ...files.torchscript import read_torchscript
from ...prompts.hooks import PromptHook


class Step(NamedTuple):
    """What AnchorOPT was given in a step, and what it returned.

    Attributes:
        cross_entropy: of the host.
        its_gradient: of the cross-entropy, with respect to the logits (n, C).
        logits: l_n (n, C).
        features: plain image features (n, e).
        reduction: "mean", "sum" or "none".
        loss: the objective.
        gradient: of the objective, with respect to the logits (n, C).
        images: the images (N, 3, R, R) of each call of the image encoder, with plain features.
    """

    cross_entropy: Tensor
    its_gradient: Tensor
    logits: Tensor
    features: Tensor
    reduction: str
    loss: Tensor
    gradient: Tensor
    images: list[tuple[Tensor, Tensor]]


@contextlib.contextmanager
def record_steps(run: Any) -> Iterator[list[Step]]:
    """Record the objectives of ``run``, AnchorOPT in a trainer, while the block runs."""
    steps: list[Step] = []
    compute = run.loss

    def recording(value: Tensor, logits: Tensor, images: Tensor, reduction: str) -> Tensor:
        loss: Tensor = compute(value, logits, images, reduction)
        own, whole = (
            torch.autograd.grad(x.sum(), logits, retain_graph=True)[0] for x in (value, loss)
        )
        calls = [(call.images, call.features) for call in run.features.calls]
        # Copies: a host may add its other losses to this loss in place.
        value, logits, found = (x.detach().clone() for x in (value, logits, loss))
        steps.append(Step(value, own, logits, images, reduction, found, whole, calls))
        return loss

    with mock.patch.object(run, "loss", recording):
        yield steps


class Differences(NamedTuple):
    """The largest differences from float64, each relative to the largest value."""

    features: float
    loss: float
    gradient: float


def compare(run: Any, steps: Sequence[Step], files: Sequence[Path]) -> Differences | None:
    """Compare the recorded steps of ``run`` with the definition of AnchorOPT.

    Args:
        run: AnchorOPT in a trainer.
        steps: of ``record_steps``.
        files: OpenAI's archives that the trainer may have loaded.

    Returns:
        The differences; None if the hook of the learner computes plain features of its own.

    Raises:
        UserError: they are larger than rounding explains.
    """
    if type(run.hook).plain_features is not PromptHook.plain_features:
        return None
    model = _plain_clip(files, run.tower.clip)
    anchors = _unit(_anchor_features(model, run.position.anchors, run.classes))
    worst = Differences(0.0, 0.0, 0.0)
    for step in steps:
        features = [_difference(found, _images(model, given)) for given, found in step.images]
        anchor_logits = model.logit_scale.exp() * step.features.double().cpu() @ anchors.t()
        loss, gradient = _objective(step, anchor_logits, run.settings)
        found = max(features), _difference(step.loss, loss), _difference(step.gradient, gradient)
        worst = Differences(*map(max, worst, found))
    allowed = 1e-4 if run.tower.clip.dtype == torch.float32 else 5e-2
    if max(worst) > allowed:
        raise UserError(
            f"AnchorOPT's objective differs from its definition (plain image features "
            f"{worst.features:.0e}, loss {worst.loss:.0e}, gradient {worst.gradient:.0e}, relative "
            f"to the largest value; {allowed:.0e} is rounding): please report this error"
        )
    return worst


def _objective(step: Step, anchor_logits: Tensor, settings: Any) -> tuple[Tensor, Tensor]:
    """Return the objective of the step, reduced as the host's loss, and its gradient (n, C)."""
    own = step.logits.double().cpu()
    value = settings.prompt_ce_weight * step.cross_entropy.double().cpu()
    temperature, (n, n_classes) = settings.kd_temperature, own.shape
    teacher = ((own + anchor_logits) / 2 / temperature).log_softmax(-1)
    student = (own / temperature).log_softmax(-1)
    each = (teacher.exp() * (teacher - student)).sum(-1) * temperature**2 / n_classes
    weight = settings.kd_weight / (n if step.reduction == "mean" else 1)
    value = value + weight * (each if step.reduction == "none" else each.sum())
    gradient = settings.prompt_ce_weight * step.its_gradient.double().cpu()
    return value, gradient + weight * temperature * (student.exp() - teacher.exp()) / n_classes


def _plain_clip(files: Sequence[Path], like: Any) -> Any:
    """Return OpenAI's CLIP in float64 with the weights that fit ``like``.

    The checkout may have a fork of clip in its place, so the installed file is read.
    """
    path = str(distribution("clip-anytorch").locate_file("clip/model.py"))
    spec = importlib.util.spec_from_file_location("_openai_clip_model", path)
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.LayerNorm.forward = nn.LayerNorm.forward  # OpenAI's own computes in float32
    own = like.state_dict()
    for file in files:
        state = read_torchscript(file)
        if all(own[name].shape == state[name].shape for name in _SIZED):
            return module.build_model(state).double()
    raise UserError(
        "the trainer has a CLIP of other sizes than the random ones of `check`: leave its "
        "--config-file away, or give an OpenAI model, such as MODEL.BACKBONE.NAME ViT-B/16 "
        'INPUT.SIZE "(224, 224)"'
    )


_SIZED = ("text_projection", "visual.conv1.weight")


@torch.no_grad()
def _images(model: Any, images: Tensor) -> Tensor:
    return _unit(model.encode_image(images.double().cpu()))


@torch.no_grad()
def _anchor_features(model: Any, anchors: Tensor, classes: Sequence[str]) -> Tensor:
    """Return the features (C, e) of ``[A] of {class}.``, with all 77 tokens, one by one."""
    rows = []
    for name in classes:
        tokens = tokenize([f"{'X ' * len(anchors)}of {as_words(name)}."])
        prompt = model.token_embedding(tokens)
        prompt[0, 1 : 1 + len(anchors)] = anchors.double().cpu()
        hidden = model.transformer((prompt + model.positional_embedding).transpose(0, 1))
        end = hidden.transpose(0, 1)[0, int(tokens.argmax())]
        rows.append(model.ln_final(end) @ model.text_projection)
    return torch.stack(rows)


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1)


def _difference(found: Tensor, wanted: Tensor) -> float:
    wanted = wanted.double()
    return ((found.double().cpu() - wanted).abs().max() / wanted.abs().max()).item()

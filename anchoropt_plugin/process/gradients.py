"""Gradients of a batch split over processes: their average, and those of split classes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable

from . import distributed


class GradientAverage:
    """Average the gradients of each backward pass over all processes.

    Process r has the fraction w_r of a batch, and its loss is a mean over that part. So the
    gradient of the mean over the whole batch is Σ_r w_r · g_r. At the end of every backward pass
    this sum replaces g_r; all gradients travel in one message. The host's next steps then work as
    in a single process: unscaling, clipping, the search for infinities, and several backward
    passes a step (gradients are linear, and the average of an average is the same average).

    ``DistributedDataParallel`` does not serve: it wraps the model, whose parts hosts access by
    name, and it allows only one backward pass for each forward.

    Args:
        parameters: the trained parameters, in the same order in all processes. A parameter that
            a pass reaches in no process keeps no gradient.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self._reached = 0
        for parameter in self.parameters:
            parameter.register_post_accumulate_grad_hook(self._reach)

    def _reach(self, parameter: Tensor) -> None:
        # Queued by every parameter: a pass that fails midway drops its queued callbacks.
        self._reached += 1
        Variable._execution_engine.queue_callback(self._average)

    @torch.no_grad()
    def _average(self) -> None:
        if not self._reached:
            return
        self._reached = 0
        gradients = [p.grad for p in self.parameters]
        has = torch.tensor([g is not None for g in gradients]).to(self.parameters[0].device)
        flat = [
            (torch.zeros_like(p) if g is None else g).flatten()
            for p, g in zip(self.parameters, gradients, strict=True)
        ]
        # The float32 flags promote the other gradients to float32 at least.
        sums = distributed.summed(torch.cat([has.float(), *flat]) * distributed.batch_fraction())
        flags, *values = sums.split([len(has), *map(len, flat)])
        rows = zip(self.parameters, flags.tolist(), values, strict=True)
        for parameter, flag, value in rows:
            if flag:
                value = value.view_as(parameter)
                if parameter.grad is None:
                    parameter.grad = value.to(parameter.dtype, copy=True)
                else:
                    parameter.grad.copy_(value)


class _AllClasses(torch.autograd.Function):
    """Gather the features (C, e) of all classes from each process's part."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, n_classes: int) -> Tensor:
        ctx.n_classes = n_classes
        return distributed.concatenated(part.contiguous(), n_classes)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        share = distributed.batch_fraction()
        total = distributed.summed(gradient.float() * share)
        part = total[distributed.part_of(ctx.n_classes)] / share
        return part.to(gradient.dtype), None


def all_classes(part: Tensor, n_classes: int) -> Tensor:
    """Return the features (C, e) of all classes; each process has encoded a part (C_r, e).

    Derivation. Let F_s = f_s(θ) be the features that process s computes. Let L = Σ_r w_r · L_r(F)
    be the loss of the batch, where L_r is the loss on the images of process r and w_r its fraction
    of the batch. Then

        dL/dθ = Σ_s J_s^T · Σ_r w_r · dL_r/dF_s,   J_s = dF_s/dθ.

    Process s knows only J_s, and ``GradientAverage`` computes Σ_s w_s · (gradient of s). So the
    gradient passed back into f_s must be

        G_s = (1 / w_s) · Σ_r w_r · dL_r/dF_s,

    which is the plain sum over the processes if all fractions are equal. Parameters with a second
    path to the loss, such as those of a second head, add their gradient linearly.

    Args:
        part: features of the classes ``distributed.part_of(n_classes)``, (C_r, e).
        n_classes: C, at least the number of processes.
    """
    features: Tensor = _AllClasses.apply(part, n_classes)
    return features


def trained_parameters(optimizers: Iterable[Any]) -> Sequence[nn.Parameter]:
    """Return each parameter of ``optimizers`` that requires a gradient, once."""
    groups = (group for optimizer in optimizers if optimizer for group in optimizer.param_groups)
    found = {id(p): p for group in groups for p in group["params"] if p.requires_grad}
    return list(found.values())

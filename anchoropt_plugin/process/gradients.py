"""Gradients of a batch that several processes share: averaged, and through features they share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable

from . import distributed


class GradientAverage:
    """Makes the gradients of each backward pass those of the whole batch, in all processes.

    A process r has the share w_r of a batch, and its loss is a mean over that; so the gradient of
    the mean over the whole batch is Σ_r w_r · g_r. At the end of every backward pass it takes the
    place of g_r, all gradients in one message. A host's own steps come after that and are those of
    one process: unscaling, clipping, looking for infinities, several backward passes a step
    (gradients are linear, and what was averaged before is its own average).

    ``DistributedDataParallel`` would wrap the model, whose parts hosts reach for by name, and
    allows for one backward pass a forward.

    Args:
        parameters: those trained, in the same order in all processes. One that a pass does not
            reach in any of them keeps no gradient.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self._reached = 0
        for parameter in self.parameters:
            parameter.register_post_accumulate_grad_hook(self._reach)

    def _reach(self, parameter: Tensor) -> None:
        # Each time, as a pass that fails midway drops what it was to call at its end.
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
        # In float32 at least, which that of the flags is.
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
    """The features of all classes (C, e), given those of this process's part of them."""

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
    """Features (C, e) of all classes, each process having encoded its part (C_r, e) of them.

    Derivation. Let F_s = f_s(θ) be the features of the part of process s, and L = Σ_r w_r · L_r(F)
    the loss of the batch, L_r being that of the pictures of process r, w_r its share of them. Then

        dL/dθ = Σ_s J_s^T · Σ_r w_r · dL_r/dF_s,   J_s = dF_s/dθ.

    Process s knows J_s alone, and ``GradientAverage`` will give Σ_s w_s · (gradient of s). So what
    goes back into f_s there must be

        G_s = (1 / w_s) · Σ_r w_r · dL_r/dF_s,

    which is the sum over the processes where all shares are equal. Parameters that are reached in
    another way as well, such as those of a second head, add to it linearly.

    Args:
        part: features of the classes that ``distributed.part_of(n_classes)`` names.
        n_classes: C, not fewer than there are processes.
    """
    features: Tensor = _AllClasses.apply(part, n_classes)
    return features


def trained_parameters(optimizers: Iterable[Any]) -> Sequence[nn.Parameter]:
    """The parameters of ``optimizers`` that take a gradient, each once."""
    groups = (group for optimizer in optimizers if optimizer for group in optimizer.param_groups)
    found = {id(p): p for group in groups for p in group["params"] if p.requires_grad}
    return list(found.values())

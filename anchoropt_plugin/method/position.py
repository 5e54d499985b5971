"""The position matrix: which soft or anchor token is in which slot of the context."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..process.distributed import copy_from_main
from .relaxations import RELAXATIONS

POOLINGS = ("eot", "unshifted")
"""Where the features of a prompt are read: see ``attach``."""


class AnchorPositionModule(nn.Module):
    """Arrange soft tokens and frozen anchor tokens: ``P · [context; anchors]``.

    Args:
        n_ctx: number M of soft tokens in a context.
        anchors: anchor tokens, (K, d), floating point; stored in a buffer, never trained here.
        relaxation: how ``logits`` become P; a name in ``RELAXATIONS``.
        temperature: of the relaxation; the attribute may be changed during training.
        init: the logits start at ``init · I`` ...
        init_std: ... plus normal noise of this standard deviation (released code: 0 and 1).
        sample_at_eval: draw P in evaluation too, as the released code does; results then change
            from run to run.
        task_dim: condition P on the task, which the buffer ``task`` (task_dim,) describes: its
            linear map ``task_map`` (M + K, M + K, task_dim), which starts at zero, is added to the
            logits. 0: no conditioning.

    Attributes:
        is_loaded: whether the last loaded state held logits and anchors.
        pooling: a name in ``POOLINGS``, by ``attach``; a state says it, as it does the relaxation.

    Shapes:
        input (…, M, d) → output (…, M + K, d), of the input's dtype. ``logits`` is a parameter
        (M + K, M + K) and is relaxed in float32 at least. P is drawn once per forward while
        training; in evaluation it is the mode of the distribution. Processes that train together
        (``torch.distributed``) draw the same P.

    Raises:
        ValueError: an unknown relaxation, a temperature that is not positive, anchors that are not
            finite, or a shape that does not fit.

    Source: AnchorOPT (Li et al., arXiv 2511.21188).

    >>> anchors = torch.full((1, 2), 9.0)
    >>> module = AnchorPositionModule(3, anchors, relaxation="sinkhorn").eval()
    >>> module(torch.zeros(3, 2))[:, 0].tolist()  # at the start: context, then anchors
    [0.0, 0.0, 0.0, 9.0]
    >>> module(torch.zeros(5, 3, 2)).shape
    torch.Size([5, 4, 2])
    """

    anchors: Tensor
    task: Tensor
    pooling = "eot"

    _is_tested = False

    def __init__(
        self,
        n_ctx: int,
        anchors: Tensor,
        *,
        relaxation: str = "sinkhorn",
        temperature: float = 1.0,
        init: float = 3.0,
        init_std: float = 0.0,
        sample_at_eval: bool = False,
        task_dim: int = 0,
    ) -> None:
        super().__init__()
        if relaxation not in RELAXATIONS:
            known = ", ".join(RELAXATIONS)
            raise ValueError(f"unknown position relaxation {relaxation!r}: one of {known}")
        if not temperature > 0:
            raise ValueError(f"the temperature is {temperature}: it must be positive")
        if n_ctx < 1:
            raise ValueError(f"n_ctx is {n_ctx}: a context has at least one soft token")
        if anchors.dim() != 2 or not anchors.is_floating_point():
            raise ValueError(
                f"anchors are {anchors.dtype} {tuple(anchors.shape)}: expected floating point "
                "(K, d)"
            )
        if not anchors.isfinite().all():
            raise ValueError("the anchors are not finite: learn or load them again")
        self.n_ctx = n_ctx
        self.relaxation = relaxation
        self.temperature = temperature
        self.sample_at_eval = sample_at_eval
        self.register_buffer("anchors", anchors.detach().clone())
        n_slots = n_ctx + len(anchors)
        dtype = torch.promote_types(anchors.dtype, torch.float32)
        start = init * torch.eye(n_slots, dtype=dtype)
        if init_std:
            start = start + init_std * torch.randn(n_slots, n_slots, dtype=dtype)
        self.logits = nn.Parameter(start.to(anchors.device))
        if task_dim:
            start = torch.zeros(n_slots, n_slots, task_dim, dtype=dtype)
            self.task_map = nn.Parameter(start.to(anchors.device))
            # Not saved: another task has its own.
            self.register_buffer("task", self.logits.new_zeros(task_dim), persistent=False)
        self._drawn: Tensor | None = None
        self._draws_once = self._is_drawn = False
        self.is_loaded = False

    @property
    def n_anchors(self) -> int:
        """Number K of anchor tokens."""
        return len(self.anchors)

    @property
    def has_anchors(self) -> bool:
        """Whether anchors are there; they are zeros before stage 1."""
        return bool(self.anchors.any())

    def relaxed(self) -> Tensor:
        """Return the soft matrix (M + K, M + K) of the present logits, without noise.

        Row i gives the weight of every token in slot i.
        """
        with torch.no_grad():
            return RELAXATIONS[self.relaxation].soft(self._scores(), self.temperature)

    def _scores(self) -> Tensor:
        """The logits, plus the offset of the task if P is conditioned on the task."""
        scores = self.logits.to(self._dtype)
        if hasattr(self, "task_map"):
            scores = scores + self.task_map.to(scores.dtype) @ self.task.to(scores.dtype)
        return scores

    def most_likely(self) -> Tensor:
        """Return the P (M + K, M + K) of the present logits without noise, the mode."""
        with torch.no_grad():
            return RELAXATIONS[self.relaxation].used(self._scores(), self.temperature)

    def draw(self) -> Tensor:
        """Draw a new P (M + K, M + K), put it in force, and return it.

        While training P is a sample, in evaluation the mode of the distribution. ``forward`` calls
        this once. A hard P has the gradient of the soft one (straight-through).
        """
        relaxation = RELAXATIONS[self.relaxation]
        # Under autocast the normalisations would run in half precision.
        with torch.autocast(self.logits.device.type, enabled=False):
            scores = self._scores()
            if relaxation.noisy and (self._is_training or self.sample_at_eval):
                noise = _gumbel(scores)
                # Processes that share a batch share P.
                scores = scores + (copy_from_main(noise) if self._is_training else noise)
            self._drawn = relaxation.used(scores, self.temperature)
        return self._drawn

    @property
    def _is_training(self) -> bool:
        return self.training and not self._is_tested

    @contextlib.contextmanager
    def tested(self) -> Iterator[None]:
        """Inside the context manager P is the mode: a host may test in training mode."""
        self._is_tested = True
        try:
            yield
        finally:
            self._is_tested = False

    @contextlib.contextmanager
    def one_draw(self) -> Iterator[None]:
        """Inside the context manager the first forward draws P, and the others use this P.

        So a batch of images has one P if the host encodes its prompts in several parts.
        """
        self._draws_once = True
        try:
            yield
        finally:
            self._draws_once = self._is_drawn = False

    @property
    def _dtype(self) -> torch.dtype:
        return torch.promote_types(self.logits.dtype, torch.float32)

    def matrix(self) -> Tensor:
        """Return the P in force, (M + K, M + K): the P of the last forward.

        Row i gives the tokens in slot i: columns 0 … M − 1 are soft tokens, the others anchors. In
        evaluation P always belongs to the present logits.
        """
        if self._drawn is None or not (self._is_training or self.sample_at_eval):
            return self.draw()
        return self._drawn

    def forward(self, context: Tensor) -> Tensor:
        if context.shape[-2:] != (self.n_ctx, self.anchors.shape[1]):
            raise ValueError(
                f"the context is (…, {context.shape[-2]}, {context.shape[-1]}): "
                f"expected (…, {self.n_ctx}, {self.anchors.shape[1]})"
            )
        anchors = self.anchors.to(context.dtype).expand(*context.shape[:-2], -1, -1)
        matrix = (self.matrix() if self._is_drawn else self.draw()).to(context.dtype)
        self._is_drawn = self._draws_once
        # Autocast would round the tokens to half precision.
        with torch.autocast(context.device.type, enabled=False):
            return matrix @ torch.cat([context, anchors], -2)

    # With the soft relaxation the temperature is part of the model, so checkpoints hold it.
    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.temperature, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        self.temperature = float(state)

    # Not in the extra state: a host compares its shape with that of earlier checkpoints.
    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, (choices, _) in _CHOICES.items():
            # A float, as a host may average all values of its checkpoints.
            number = float(choices.index(getattr(self, name)))
            destination[f"{prefix}{name}"] = torch.tensor(number)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *more: Any) -> None:
        state_dict = {**state_dict}
        for name, (choices, key) in _CHOICES.items():
            number, own = state_dict.pop(f"{prefix}{name}", None), getattr(self, name)
            there = own if number is None else dict(enumerate(choices)).get(round(float(number)))
            if there != own:  # earlier versions saved no number
                raise UserError(
                    f"the position matrix of the checkpoint has the {name} {there!r}, but here it "
                    f"is {own!r}: give the one it was trained with (attach: {name}, a run: "
                    f"TRAINER.ANCHOROPT.{key})"
                )
        loaded = [f"{prefix}{name}" in state_dict for name in ("logits", "anchors")]
        self.is_loaded = all(loaded)
        saved = state_dict.get(f"{prefix}logits", self.logits)
        if saved.shape != self.logits.shape:
            raise UserError(
                f"the position matrix of the checkpoint is {tuple(saved.shape)}, but here a prompt "
                f"has {self.n_ctx} soft tokens and {self.n_anchors} anchors: give the numbers it "
                "was trained with; a learner whose context depends on the classes can only be "
                "tested on its own classes"
            )
        # A checkpoint of the host alone has neither, and misses nothing.
        if any(loaded):
            super()._load_from_state_dict(state_dict, prefix, *more)

    def __getstate__(self) -> dict[str, Any]:
        # The drawn matrix is part of an autograd graph, which can be neither copied nor pickled.
        return {**self.__dict__, "_drawn": None}

    def extra_repr(self) -> str:
        return f"n_ctx={self.n_ctx}, n_anchors={self.n_anchors}, relaxation={self.relaxation!r}"


_CHOICES = {"relaxation": ([*RELAXATIONS], "POSITION"), "pooling": (POOLINGS, "POOLING")}
"""Attributes that a state must share with its module: their values, and the key of a run."""


def _gumbel(like: Tensor) -> Tensor:
    return -torch.empty_like(like).exponential_().log()

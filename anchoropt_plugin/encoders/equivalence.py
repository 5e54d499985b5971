"""Compare the fast text branch with the host's own encoder, once, on the real classes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UserError
from .clip_models import tokenize
from .huggingface_text import is_huggingface
from .shared_prefix import leaves
from .text_tower import TextTower

Branch: TypeAlias = Callable[..., Tensor | None]
"""Maps prompts (…, C, L, d), tokens (C, L), maybe deep prompts, to features (…, C, e)."""

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}
"""Largest relative error of features, by the dtype of the encoder's weights."""
HALF_TOLERANCE = 3e-2
CALL_ERRORS = (AttributeError, IndexError, RuntimeError, TypeError, ValueError)
"""Errors of a call that an encoder is not made for (it may hold a parameter for each class)."""
GRADIENT = 10
"""How many times larger the error of the gradient of prompts may be."""
OF_WEIGHT = 30
"""The same of a trained weight, which may be small."""
CHECKED_CLASSES = 64
CHECKED_AGAIN = 4
"""Classes of a further comparison: what an encoder computes may change between epochs."""
_ONLY_IN_CLIP = ("token_embedding", "logit_scale")
"""What a CLIP has, and the text encoder of a host has not."""


class Finding(NamedTuple):
    """The result of a comparison.

    Attributes:
        error: relative error of the fast branch's features; None if it returned none.
        reason: why the fast branch must not be used, or "".
    """

    error: float | None
    reason: str


@torch.inference_mode(False)
def compare(
    encoder: nn.Module,
    own: Branch,
    fast: Branch,
    n_classes: int,
    prompts: Tensor,
    tokens: Tensor,
    *deep: Sequence[Tensor],
) -> Finding:
    """Compare both branches on some of the classes, the longest class name among them.

    They must have the same features, and pass the same gradient to the prompts and to the trained
    tensors: these may change the features later, as an adapter that starts at zero does.

    Args:
        encoder: the host's text encoder; its dropouts are checked, too.
        own: the encoder's own forward.
        fast: the fast branch; it may raise one of ``CALL_ERRORS``, or return None if it does not
            apply.
        n_classes: the most classes that are compared.
        prompts, tokens, deep: the arguments of the encoder; of several sets of prompts (one an
            image), the first is compared.
    """
    prompts, tokens = _sample(prompts.detach(), tokens, n_classes)
    prompts = prompts.clone()  # a tensor made in inference mode cannot be in a graph
    # Autocast and TF32 round both sides differently, by much more than the tolerance.
    with _exact(prompts.device):
        name = type(encoder).__name__
        try:
            with torch.enable_grad():
                want = own(prompts, tokens, *deep)
                assert want is not None
                read = list(leaves(want)) if want.requires_grad else []
            with torch.set_grad_enabled(bool(read)):
                features = fast(prompts, tokens, *deep)
        except CALL_ERRORS as refusal:
            return Finding(None, f"it cannot read {name} ({refusal})")
        if features is None:
            return Finding(None, f"{name} has deep prompts and class-specific contexts")
        difference = (features - want).detach().float().norm()
        error = float(difference / want.detach().float().norm())
        tolerance = TOLERANCE.get(TextTower(encoder).dtype, HALF_TOLERANCE)
        # Written so that NaN counts as different.
        if not error <= tolerance:
            return Finding(error, f"it differs from {name} by {error:.1e}")
        try:
            of_gradient = _error_of_gradient(own, fast, prompts, tokens, *deep)
        except CALL_ERRORS as refusal:
            return Finding(error, f"it cannot read the gradient of {name} ({refusal})")
        if not of_gradient <= GRADIENT * tolerance:
            return Finding(error, f"its gradient differs from that of {name} by {of_gradient:.1e}")
        missed = _dropouts(encoder)
        missed += _names(encoder, _differing(read, want, features, OF_WEIGHT * tolerance), read)
        return Finding(error, f"it does not read {missed[0]} of {name}" if missed else "")


def _error_of_gradient(
    own: Branch, fast: Branch, prompts: Tensor, tokens: Tensor, *deep: Sequence[Tensor]
) -> float:
    """Return the relative error of the gradient that the fast branch passes to all prompts.

    An encoder may stop or scale it. Few classes, as a graph of the host's forward is large.
    """
    prompts, tokens = _sample(prompts, tokens, CHECKED_AGAIN)
    gradients = []
    for branch in (own, fast):
        shift = torch.zeros_like(prompts[0], requires_grad=True)
        with torch.enable_grad():
            features = branch(prompts + shift, tokens, *deep)
        assert features is not None
        upstream = torch.randn(features.shape, generator=torch.Generator().manual_seed(0))
        # Without a graph, as under no_grad, the sum is not of features alone.
        total = (features * upstream.to(features)).sum() + 0 * shift.sum()
        gradients.append(torch.autograd.grad(total, shift)[0].float())
    want, ours = gradients
    smallest = torch.finfo(want.dtype).tiny
    return float((ours - want).norm() / want.norm().clamp_min(smallest))


@contextlib.contextmanager
def _exact(device: torch.device) -> Iterator[None]:
    """Compute without autocast and TF32 inside the context manager."""
    # torch 2.9 has a second interface. What it has set cannot be read through the first.
    backends = torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)
    newer: list[Any] = [backend for backend in backends if hasattr(backend, "fp32_precision")]
    precisions = [backend.fp32_precision for backend in newer]
    precision = None
    with contextlib.suppress(RuntimeError):
        precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        if precision is not None:
            torch.set_float32_matmul_precision(precision)
        for backend, value in zip(newer, precisions, strict=True):
            backend.fp32_precision = "none"  # that of all backends
            if backend.fp32_precision != value:
                backend.fp32_precision = value


@torch.no_grad()
def tower_of(model: TextTower | nn.Module) -> TextTower:
    """Return the text tower of a CLIP, or the tower that is given.

    Models of open_clip and transformers have many variants, and any CLIP may have been changed by
    adapters or hooks, so the tower's features of some texts are compared with the model's own.

    Raises:
        UserError: the model is no CLIP, as the text encoder of a host; or its text tower has
            another architecture than CLIP's.
    """
    if isinstance(model, TextTower):
        return model
    tower, name = TextTower(model), type(model).__name__
    of_library = type(model).__module__.partition(".")[0] in ("open_clip", "transformers")
    if not of_library:
        missing = [part for part in _ONLY_IN_CLIP if not hasattr(tower.clip, part)]
        if missing:
            raise UserError(f"{name} has no {', '.join(missing)}: give the whole CLIP")
    other = f"{name} has another text tower than OpenAI's CLIP"
    try:
        tokens = tokenize(["a photo of a cat.", "a red fox"]).to(tower.device)
        with _exact(tower.device):
            found = F.normalize(tower.encode_tokens(tokens).float(), dim=-1)
    except CALL_ERRORS as refusal:
        raise UserError(f"{other}: {refusal}") from refusal
    try:
        with _exact(tower.device):
            # Some models normalise the features of texts, so directions are compared.
            want = F.normalize(_own_features(model, tokens).float(), dim=-1)
        error = float((found - want).norm() / found.norm())
    except CALL_ERRORS as refusal:
        if not of_library:  # a repository's own CLIP may have no encode_text, or another one
            return tower
        raise UserError(f"{other}: {refusal}") from refusal
    if not error <= TOLERANCE.get(tower.dtype, HALF_TOLERANCE):
        raise UserError(
            f"{other}: its features of a text differ by {error:.0e}; give the CLIP without "
            "adapters and hooks, or TextTower(clip) for its own weights alone"
        )
    return tower


def _own_features(clip: Any, tokens: Tensor) -> Any:
    if is_huggingface(clip):
        return clip.text_projection(clip.text_model(input_ids=tokens).pooler_output)
    return clip.encode_text(tokens)


def _sample(prompts: Tensor, tokens: Tensor, at_most: int) -> tuple[Tensor, Tensor]:
    n_classes = len(tokens)
    some = torch.linspace(0, n_classes - 1, min(n_classes, at_most)).long()
    some[-1] = tokens.argmax(-1).argmax()
    prompts = prompts.flatten(0, -4)[0] if prompts.dim() > 3 else prompts
    return prompts[some.to(prompts.device)], tokens[some.to(tokens.device)]


def _dropouts(encoder: nn.Module) -> list[str]:
    """Return the names of modules with dropout."""

    def drops(module: nn.Module) -> bool:
        if isinstance(module, nn.MultiheadAttention):
            return module.dropout > 0
        return isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0

    return [name for name, module in encoder.named_modules() if drops(module)]


def _differing(
    tensors: Sequence[Tensor], want: Tensor, features: Tensor, limit: float
) -> list[int]:
    """Return the places of the leaf tensors whose gradients differ by more than ``limit``."""
    pairs = zip(_gradients(tensors, want), _gradients(tensors, features), strict=True)
    # Written so that NaN counts as different.
    return [n for n, (a, b) in enumerate(pairs) if not (a - b).norm() <= limit * a.norm()]


def _gradients(tensors: Sequence[Tensor], features: Tensor) -> list[Tensor]:
    if not (tensors and features.requires_grad):
        return [torch.zeros_like(tensor) for tensor in tensors]
    upstream = torch.randn(features.shape, generator=torch.Generator().manual_seed(0))
    gradients = torch.autograd.grad(
        features, tensors, upstream.to(features), retain_graph=True, allow_unused=True
    )
    pairs = zip(gradients, tensors, strict=True)
    return [torch.zeros_like(x) if g is None else g.float() for g, x in pairs]


def _names(encoder: nn.Module, places: Iterable[int], tensors: Sequence[Tensor]) -> list[str]:
    """Return the names in ``encoder`` of some of the tensors, or their shapes."""
    names = {id(parameter): name for name, parameter in encoder.named_parameters()}
    return sorted(
        names.get(id(tensors[place]), f"a trained tensor of the shape {[*tensors[place].shape]}")
        for place in places
    )

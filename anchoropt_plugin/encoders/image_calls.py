"""The images that a host encodes, and their features in the plain CLIP."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import UserError
from .logit_origin import nodes_in, nodes_of, reached

REMEMBERED = 8
"""Calls of an image encoder that are remembered: their images stay in memory until then."""


class ImageCall:
    """A call of a host's image encoder: its images, and their features in the plain CLIP.

    Args:
        images: (N, 3, R, R).
        plain: the features (N, e) of the plain CLIP, or a function that computes them.
        given: the images that the host's model was called with, if the model made this call.
        output: of the encoder, if known.

    Attributes:
        images: (N, 3, R, R).
        given: see above.
        used: rows whose logits have met the objective.
        nodes, output: see ``logit_origin.Call``.
        returned: the nodes of what the host's model made of the output.
    """

    def __init__(
        self,
        images: Tensor,
        plain: Tensor | Callable[[], Tensor],
        given: Tensor | None = None,
        output: Any = None,
    ) -> None:
        self.images, self.given = images, given
        self.nodes, self.returned = {*nodes_in(output)}, set[Any]()
        first = output[0] if isinstance(output, (tuple, list)) and output else output
        is_of_images = isinstance(first, Tensor) and first.dim() == 2
        self.output = first.detach() if is_of_images else None
        self.used: list[range] = []
        # At once: a host may change the output of its encoder in place.
        self._plain = _normalised(plain) if isinstance(plain, Tensor) else plain
        device = images.device.type
        self._autocast = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def features(self) -> Tensor:
        """L2-normalised features (N, e) in float32.

        Raises:
            UserError: they have another shape.
        """
        if not isinstance(self._plain, Tensor):
            enabled, dtype = self._autocast
            with torch.no_grad(), torch.autocast(self.images.device.type, dtype, enabled):
                self._plain = _normalised(self._plain())
        if self._plain.dim() != 2 or len(self._plain) != len(self):
            raise UserError(
                f"the image encoder returns features of the shape {tuple(self._plain.shape)} for "
                f"{len(self)} images, where AnchorOPT needs CLIP's feature of each image, "
                f"({len(self)}, width): give the learner a PromptHook (register_hook) whose "
                "plain_features returns them"
            )
        return self._plain

    def is_used(self, rows: range) -> bool:
        """Whether some of ``rows`` have met the objective."""
        return any(range(max(rows[0], one[0]), min(rows[-1], one[-1]) + 1) for one in self.used)

    def rearranges(self, images: Tensor) -> bool:
        """Whether this call got ``images`` in another order, or mirrored: other values never are.

        What the host's model does to its images counts as no change, as it does so in training too.
        """
        own = self.images
        # These need no wait for a GPU.
        if own is images or self.given is images or own.shape != images.shape:
            return False
        images = images.to(own)
        if torch.equal(own, images):
            return False
        return torch.equal(own.flatten().sort().values, images.flatten().sort().values)

    def reorders(self, images: Tensor) -> bool:
        """Whether this call got ``images`` in another order, which waits for a GPU."""
        own = self.images
        if own is images or own.shape != images.shape:
            return False
        images = images.to(own)
        moved = own[(own != images).flatten(1).any(1)]
        return len(moved) > 0 and bool((images == moved[0]).flatten(1).all(1).any())

    def shows(self, images: Tensor) -> bool:
        """Whether this call got ``images`` (B, 3, R, R), or consecutive ones of them."""
        own, n = self.images, len(self)
        if own is images:
            return True
        if own.shape[1:] != images.shape[1:] or not 0 < n <= len(images):
            return False
        images = images.to(own)
        starts = (images[: len(images) - n + 1] == own[0]).flatten(1).all(1).nonzero().flatten()
        return any(torch.equal(images[start : start + n], own) for start in starts.tolist())


class ImageCalls:
    """A forward hook, with keyword arguments, on an image encoder: it notes the calls.

    Args:
        plain: maps the encoder, its arguments, its keyword arguments and its output to plain
            features (N, e), or to a function that computes them.
    """

    def __init__(self, plain: Callable[..., Tensor | Callable[[], Tensor]]) -> None:
        self.calls: deque[ImageCall] = deque(maxlen=REMEMBERED)
        self._plain = plain
        self._busy = False
        self.clear()

    def clear(self) -> None:
        """Forget all calls."""
        self.calls.clear()
        self._given: Tensor | None = None
        self._open: list[ImageCall] | None = None
        self._text_nodes: set[Any] = set()

    def forget(self, call: ImageCall | None) -> None:
        """Forget a call and those before it: a host may have made later ones in advance."""
        while any(one is call for one in self.calls):
            self.calls.popleft()

    def __getstate__(self) -> dict[str, Any]:
        # A copy of a model has called nothing yet, and a graph cannot be copied.
        return {**self.__dict__, **vars(ImageCalls(self._plain))}

    def watch(self, model: nn.Module, text_encoders: Iterable[nn.Module] = ()) -> None:
        """Note the images and the outputs of a host's model, for the calls that it makes."""
        model.register_forward_pre_hook(self._enter, with_kwargs=True)
        model.register_forward_hook(self._leave)
        for encoder in text_encoders:
            encoder.register_forward_hook(self._encode_text)

    def _enter(self, model: nn.Module, args: Any, named: dict[str, Any]) -> None:
        self._given, self._open = images_among(args, named), []

    def _leave(self, model: nn.Module, args: Any, output: Any) -> None:
        for call in self._open or []:
            call.returned.update(nodes_in(output))
            call.nodes |= call.returned
        self._given = self._open = None

    def _encode_text(self, encoder: nn.Module, args: Any, output: Any) -> None:
        self._text_nodes.update(nodes_in(output))

    def __call__(self, module: nn.Module, args: Any, named: dict[str, Any], output: Any) -> None:
        images = images_among(args, named)
        if self._busy or images is None:
            return
        with self._alone():
            plain = self._plain(module, args, named, output)
        if not isinstance(plain, Tensor):
            compute = plain

            def plain() -> Tensor:
                with self._alone():
                    return compute()

        call = ImageCall(images, plain, self._given, output)
        self.calls.append(call)
        if self._open is not None:
            self._open.append(call)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Ignore calls inside the context manager, which plain features need."""
        self._busy = True
        try:
            with torch.no_grad():
                yield
        finally:
            self._busy = False

    @property
    def value(self) -> Tensor | None:
        """The features (N, e) of the first call's images, or None before a call."""
        return self.calls[0].features if self.calls else None

    def of(
        self, n: int, rows: range, batch: Sequence[Tensor] = (), logits: Tensor | None = None
    ) -> ImageCall | None:
        """Return the first call with ``n`` images of which ``rows`` have not met the objective.

        Args:
            n: number of images.
            rows: some of them.
            batch: images, each (B, 3, R, R): calls with other images are skipped, if there is a
                call with these.
            logits: of these images, with a graph: of several calls with ``n`` images, one that
                ``logits`` do not come from is skipped, if there is one that they come from.

        Raises:
            UserError: there are several such calls with different images, or ``logits`` mix what
                the model returned for images of the batch and for others.
        """
        calls, shown, known = list(self.calls), list[ImageCall](), False
        if len(calls) > 1:
            shown = [call for call in calls if any(call.shows(images) for images in batch)]
            known = bool(shown)
            calls = shown or calls
        if known and logits is not None:
            found = self._reached(logits, [call for call in self.calls if len(call) == n])
            calls = [call for call in calls if call in found] if found else calls
            others = [call.returned for call in found if call not in shown] if calls else []
            if any(not nodes.isdisjoint(nodes_of(logits, nodes)) for nodes in others if nodes):
                raise UserError(
                    f"the host mixes the outputs of its model for {len(found)} sets of {n} images "
                    "in the logits of one loss, and AnchorOPT's objective needs logits of one "
                    "image each: give F.cross_entropy the logits of one call of the model"
                )
        calls = [call for call in calls if len(call) == n and not call.is_used(rows)]
        if not all(call.shows(calls[0].images) for call in calls[1:]):
            unknown = "" if known else " that the loader did not give"
            raise UserError(
                f"the host encodes {len(calls)} sets of {n} images{unknown} in one step, and "
                "AnchorOPT cannot tell of which of them logits are: call the model once for each "
                "view of the loader, or with all views at once, and give F.cross_entropy the "
                "logits of that call"
            )
        return calls[0] if calls else None

    def _reached(self, logits: Tensor, calls: list[ImageCall]) -> list[ImageCall]:
        """Return those of ``calls`` that logits come from; none if that cannot be told."""
        if len(calls) < 2:
            return []
        # A model that computes its loss itself has not returned yet.
        inside = [call for call in calls if any(call is one for one in self._open or [])]
        return inside if len(inside) == 1 else reached(logits, inside or calls, self._text_nodes)


def images_among(args: Sequence[Any], named: Mapping[str, Any]) -> Tensor | None:
    """Return the first batch of images (N, 3, R, R) among the arguments of a call, or None."""
    tensors = (x for x in (*args, *named.values()) if isinstance(x, Tensor))
    return next((x for x in tensors if x.dim() == 4), None)


def _normalised(features: Tensor) -> Tensor:
    return F.normalize(features.detach().float(), dim=-1)

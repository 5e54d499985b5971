"""Whether the columns of a host's logits are the classes, in their order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..encoders.class_names import as_words
from ..encoders.clip_models import tokenize


class Columns:
    """A forward hook on text encoders until the columns of logits were compared once.

    Column k must depend on the prompt of class k. A host may hold its prompts in another order: a
    prompt of another row counts if it has the name of class k.

    Args:
        encoders: the host's text encoders, called with (prompts, tokens).
        class_names: C names, in the order of the labels.
    """

    def __init__(self, encoders: Iterable[nn.Module], class_names: Sequence[str]) -> None:
        self.class_names = class_names
        self._seen: list[tuple[Any, Tensor]] = []
        self._handles = [encoder.register_forward_hook(self) for encoder in encoders]

    def __call__(self, encoder: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        features = output[0] if isinstance(output, tuple) else output
        if not isinstance(features, Tensor) or not features.requires_grad:
            return
        if features.shape[-2:-1] == (len(self.class_names),):
            self._seen.append((args[1] if len(args) > 1 else None, features))

    def clear(self) -> None:
        """Forget the calls of an earlier step."""
        self._seen.clear()

    def strange(self, logits: Tensor) -> str:
        """Return what is wrong with the columns of logits (B, C), or an empty string.

        Columns that mix prompts, or do not come from the text encoder, are left to the host.
        """
        calls, self._seen = self._seen, []
        for handle in self._handles:
            handle.remove()
        self._handles = []
        for tokens, features in calls:
            for row, column in enumerate(_columns_of(logits, features)):
                name = self.class_names[column]
                if row != column and not (isinstance(tokens, Tensor) and _has(tokens[row], name)):
                    prompt = self.class_names[row]
                    return f"whose column {column} is not class {name!r} but {prompt!r}"
        return ""


def _columns_of(logits: Tensor, features: Tensor) -> list[int]:
    """Return which column of logits (B, C) each row of features (…, C, e) is for.

    The list is empty if columns are no such rows. The gradient of columns with different weights
    shows it: the gradient of a row has the weight of its column.
    """
    n = logits.shape[-1]
    weights = torch.linspace(1, 2, n, device=logits.device)
    plain, weighted = (
        torch.autograd.grad(total, features, retain_graph=True, allow_unused=True)[0]
        for total in (logits.float().sum(), (logits.float() * weights).sum())
    )
    if plain is None or weighted is None:
        return []
    plain, weighted = (x.float().movedim(-2, 0).flatten(1) for x in (plain, weighted))
    found = (plain * weighted).sum(1) / plain.square().sum(1)
    distance, columns = (found[:, None] - weights).abs().min(1)
    is_clear = bool((distance < 0.25 / max(1, n - 1)).all())
    order: list[int] = columns.tolist()
    return order if is_clear and sorted(order) == list(range(n)) else []


def _has(tokens: Tensor, name: str) -> bool:
    """Whether a prompt (77,) has the tokens of a class name."""
    words = tokenize([as_words(name)])[0]
    words = words[1 : int(words.argmax())]
    return bool((tokens.cpu().unfold(0, len(words), 1) == words).all(1).any())

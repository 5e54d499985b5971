"""Load a CLIP by name or from a file; tokenise texts; set the precision.

Weights are read as tensors only: no pickle and no TorchScript archive can run code.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NoReturn

import regex
import torch
from torch import Tensor

from ..errors import UserError, nearest
from .architecture import build, sizes_of
from .class_names import as_words
from .hub import CONFIG_KEY, OPEN_CLIP
from .openai_clip import CLIP, SimpleTokenizer, basic_clean, convert_weights, whitespace_clean
from .weight_files import (
    BY_NAME,
    TINY,
    architecture_of,
    find,
    in_openai_layout,
    one_line,
    read,
)

__all__ = [
    "CONTEXT_LENGTH",
    "MARKS",
    "TINY",
    "first_twins",
    "load_clip",
    "to_precision",
    "tokenize",
    "unknown_words",
    "warn_of_unknown_words",
    "words_of",
]

CONTEXT_LENGTH = 77
"""Tokens in a text of any CLIP, start, end and padding included."""

MARKS = ("<|startoftext|>", "<|endoftext|>")
"""CLIP's own marks. In a text, the first end mark would hide the rest of the text from CLIP."""

PRECISIONS = ("fp16", "fp32", "amp")

_VOCABULARY = 49408
_LONGEST_TEXT = 10_000
"""Letters of the longest text that is tokenised: the time grows with their square."""
_SHOWN = 500
_log = logging.getLogger("anchoropt_plugin")


def load_clip(backbone: str, *, download_root: str | None = None, config: str = "") -> CLIP:
    """Load a CLIP model: fp32, on the CPU, in eval mode, with all parameters frozen.

    Widths, depths and resolution come from the weights. The activation and the number of attention
    heads come from the configuration beside them.

    Args:
        backbone: one of ``clip.available_models()`` ("RN50", "ViT-B/16", …), downloaded on first
            use; or "tiny", the model in this package; or the path of a file or a folder. A file
            is OpenAI's TorchScript archive, or a state dict of OpenAI, open_clip or transformers
            (also under the key "state_dict", also with the prefix "module."). A folder holds the
            weights and the configuration of open_clip or transformers. "hf-hub:OWNER/NAME" is such
            a folder on the Hugging Face hub, "open_clip:MODEL/TAG" a file in open_clip's list.
        download_root: folder of downloads; None is ``~/.cache/clip`` for OpenAI's weights, and the
            libraries' own folder for others.
        config: what a state dict alone does not tell: "openai" for OpenAI's weights, or the json
            file of open_clip or transformers that describes the model, or "open_clip:MODEL".

    Returns:
        The model. Its attribute ``known_tokens`` is the frozenset of token numbers that it was
        trained on, or None for all tokens; see ``unknown_words``. Its attribute ``preparation``
        is an ``ImagePreparation``, how images are prepared for it, or None if nothing tells it.

    Raises:
        UserError: the backbone or file does not exist, the download fails, the file is damaged, is
            no CLIP of OpenAI's architecture, or could only be read by running code in it; or
            ``config`` is missing, or contradicts the weights.

    >>> model = load_clip("tiny")
    >>> model.visual.input_resolution, model.dtype
    (32, torch.float32)
    """
    found = find(backbone, download_root)
    given = architecture_of(config) if config else None
    path = found.path
    weights = read(path)
    try:
        state = _checked(in_openai_layout(weights.state), weights.token_ids)
        own = found.architecture or weights.architecture
        architecture = own or given or _ask(path)
        if own and given and own.towers(state) != given.towers(state):
            raise UserError(
                f"{config} describes another CLIP than {path}: leave config "
                "(MODEL.BACKBONE.CONFIG) empty"
            )
        model = build(state, architecture)
    except KeyError as error:
        first = ", ".join(list(weights.state)[:3]) or "none at all"
        raise UserError(
            f"{path} is no CLIP state dict: the key {error} is missing; its first keys are {first}"
        ) from error
    except (RuntimeError, AttributeError, IndexError, ValueError, TypeError) as error:
        raise UserError(f"{path} is no CLIP state dict: {one_line(error)}") from error
    ids = weights.token_ids
    model.known_tokens = None if ids is None else frozenset(ids.tolist())
    model.preparation = architecture.preparation
    return model.requires_grad_(False).eval()


def tokenize(texts: Sequence[str]) -> Tensor:
    """Return the token numbers of ``texts``: start, words, end, then zeros.

    Args:
        texts: n texts of any case.

    Returns:
        (n, 77) int64. The end token has the highest number, so ``argmax(-1)`` finds it.

    Raises:
        UserError: a text has more than 77 tokens (the message gives the text and the number), or
            one of CLIP's marks.

    >>> tokenize(["a photo of a star."])[0, :8].tolist()
    [49406, 320, 1125, 539, 320, 1565, 269, 49407]
    """
    tokenizer = _tokenizer()
    start, end = (tokenizer.encoder[mark] for mark in MARKS)
    tokens = torch.zeros(len(texts), CONTEXT_LENGTH, dtype=torch.long)
    for row, text in zip(tokens, texts, strict=True):
        if len(text) > _LONGEST_TEXT:
            raise UserError(
                f"a text has {len(text)} letters, but CLIP reads at most {CONTEXT_LENGTH} tokens; "
                f"shorten it: {text[:_SHOWN]!r} …"
            )
        numbers = [start, *tokenizer.encode(text), end]
        if len(numbers) > CONTEXT_LENGTH:
            raise UserError(
                f"a text has {len(numbers)} tokens, but CLIP reads at most {CONTEXT_LENGTH}; "
                f"shorten it: {text[:_SHOWN]!r}{' …' if len(text) > _SHOWN else ''}"
            )
        if not {start, end}.isdisjoint(numbers[1:-1]):
            raise UserError(
                f"a text has one of CLIP's own marks, {' or '.join(MARKS)}; remove it: {text!r}"
            )
        row[: len(numbers)] = torch.tensor(numbers)
    return tokens


@cache
def words_of(name: str) -> tuple[str, ...]:
    """Return the words of a class name as CLIP reads it in a prompt.

    Names of the same words have the same tokens: they are one class to CLIP.

    >>> words_of("Red_Fox"), words_of("F-16")
    (('red', 'fox'), ('f', '-', '1', '6'))
    """
    text = whitespace_clean(basic_clean(as_words(name))).lower()
    return tuple(regex.findall(_tokenizer().pat, text))


def first_twins(names: Sequence[str]) -> tuple[int, int] | None:
    """Return the places of the first two class names that are one to CLIP, or None.

    >>> first_twins(["badger", "red fox", "Red_Fox"])
    (1, 2)
    """
    seen: dict[tuple[str, ...], int] = {}
    for place, name in enumerate(names):
        other = seen.setdefault(words_of(name), place)
        if other != place:
            return other, place
    return None


def unknown_words(model: CLIP, texts: Sequence[str]) -> list[str]:
    """Return the words of ``texts`` that ``model`` was never trained on, each once, in order.

    Only the embedded tiny model has such words: they are noise to it. A word is known if all its
    byte-pair tokens are known.

    Args:
        model: any CLIP, as from ``load_clip``.
        texts: prompts, class names, descriptions.

    Returns:
        Lower-case words; an empty list for a model that knows all tokens.

    >>> unknown_words(load_clip("tiny"), ["a photo of a red circle.", "a photo of a Pizza."])
    ['pizza']
    """
    known: frozenset[int] | None = getattr(model, "known_tokens", None)
    if known is None:
        return []
    tokenizer = _tokenizer()
    words = [word for text in texts for word in regex.findall(tokenizer.pat, text.lower())]
    return [word for word in dict.fromkeys(words) if not known.issuperset(tokenizer.encode(word))]


def warn_of_unknown_words(model: CLIP, texts: Sequence[str], what: str = "class names") -> None:
    """Print a warning with the words of ``texts`` that the backbone was never trained on."""
    words = unknown_words(model, [*map(as_words, texts)])
    if words:
        print(
            f"Warning: the backbone never saw {len(words)} word(s) of the {what} "
            f"({', '.join(words)}): these mean nothing to it"
        )


def to_precision(model: CLIP, precision: str, device: torch.device | str) -> CLIP:
    """Move ``model`` to ``device``, in a precision as public trainers name it.

    Args:
        model: a CLIP; it is changed in place.
        precision: "fp32" and "amp" keep all weights in float32 (amp casts while computing); "fp16"
            is CLIP's own half precision: layer norms and embeddings stay in float32.
        device: the target; on the CPU every precision becomes fp32, with a note in the log.

    Returns:
        The same model.

    Raises:
        UserError: the precision is unknown.

    >>> to_precision(load_clip("tiny"), "fp32", "cpu").dtype
    torch.float32
    """
    if precision not in PRECISIONS:
        hint = nearest(precision, PRECISIONS)
        raise UserError(f"no precision {precision!r}{hint}: choose one of {', '.join(PRECISIONS)}")
    device = torch.device(device)
    if device.type == "cpu" and precision != "fp32":
        _log.info("precision %s needs a GPU; on the CPU the model runs in fp32", precision)
        precision = "fp32"
    model.float()
    if precision == "fp16":
        convert_weights(model)
    return model.to(device)


@cache
def _tokenizer() -> SimpleTokenizer:
    return SimpleTokenizer()


def _ask(path: Path) -> NoReturn:
    raise UserError(
        f"{path} does not tell whether its activation is GELU or QuickGELU, nor how many attention "
        f"heads it has: give load_clip(name, config=…) {BY_NAME!r} for OpenAI's weights, else the "
        "json file of open_clip or transformers that describes the model, or "
        f"{OPEN_CLIP}MODEL; {CONFIG_KEY}. Or give the folder with both"
    )


def _checked(state: dict[str, Tensor], token_ids: Tensor | None) -> dict[str, Tensor]:
    """Return the state dict of a whole CLIP, with finite tensors and texts of 77 tokens."""
    if token_ids is not None:
        state = _with_all_tokens(state, token_ids)
    sizes_of(state)  # names a tensor that is missing
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} is not finite")
    length = len(state["positional_embedding"])
    if length != CONTEXT_LENGTH:
        raise ValueError(f"it reads texts of {length} tokens, but CLIP reads {CONTEXT_LENGTH}")
    return state


def _with_all_tokens(state: dict[str, Tensor], token_ids: Tensor) -> dict[str, Tensor]:
    """Add the token embeddings that the tiny model's file omits.

    Their values are those of an untrained CLIP, N(0, 0.02), always the same.
    """
    rows = state["token_embedding.weight"].float()
    generator = torch.Generator().manual_seed(0)
    # A caller may have set another default dtype, which would also draw other numbers.
    shape = (_VOCABULARY, rows.shape[1])
    table = 0.02 * torch.randn(shape, generator=generator, dtype=torch.float32)
    table[token_ids.long()] = rows
    return {**state, "token_embedding.weight": table}

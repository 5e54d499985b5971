"""Load a CLIP by name, from a file, or the embedded tiny one; tokenise texts; set the precision.

Weights are read as tensors only: no pickle and no TorchScript archive can run code.
"""

from __future__ import annotations

import logging
import pickle
import re
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError, nearest
from ..files.checkpoints import check_archive
from ..files.torchscript import is_torchscript, read_torchscript
from .class_names import as_words
from .pkg_resources_stand_in import offer_pkg_resources

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # clip imports pkg_resources, which is deprecated
    offer_pkg_resources()
    import clip
    import regex
    from clip.model import CLIP, build_model, convert_weights
    from clip.simple_tokenizer import SimpleTokenizer, basic_clean, whitespace_clean

__all__ = [
    "CONTEXT_LENGTH",
    "MARKS",
    "TINY",
    "first_twins",
    "load_clip",
    "to_precision",
    "tokenize",
    "unknown_words",
    "words_of",
]

CONTEXT_LENGTH = 77
"""Tokens in a text of any CLIP, start, end and padding included."""

MARKS = ("<|startoftext|>", "<|endoftext|>")
"""CLIP's own marks. In a text, the first end mark would hide the rest of the text from CLIP."""

TINY = "tiny"
"""The backbone name of the embedded model."""

PRECISIONS = ("fp16", "fp32", "amp")

_TINY_FILE = Path(__file__).parents[1] / "assets" / "tiny_clip.pt"
_VOCABULARY = 49408
_LONGEST_TEXT = 10_000
"""Letters of the longest text that is tokenised: the time grows with their square."""
_SHOWN = 500
_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")
_log = logging.getLogger("anchoropt_plugin")


def load_clip(backbone: str, *, download_root: str | None = None) -> CLIP:
    """Load a CLIP model: fp32, on the CPU, in eval mode, with all parameters frozen.

    Widths, depths and resolution come from the weights.

    Args:
        backbone: one of ``clip.available_models()`` ("RN50", "ViT-B/16", …), downloaded on first
            use; or the path of a file, OpenAI's TorchScript archive or a state dict (also under
            the key "state_dict"); or "tiny", the model in this package.
        download_root: folder of downloads; None is clip's own ``~/.cache/clip``.

    Returns:
        The model. Its attribute ``known_tokens`` is the frozenset of token numbers that it was
        trained on, or None for all tokens; see ``unknown_words``.

    Raises:
        UserError: the backbone or file does not exist, the download fails, or the file is damaged,
            is no CLIP, or could only be read by running code in it.

    >>> model = load_clip("tiny")
    >>> model.visual.input_resolution, model.dtype
    (32, torch.float32)
    """
    path = _TINY_FILE if backbone == TINY else _find(backbone, download_root)
    content = _read(path)
    try:
        model = _build(content)
    except KeyError as error:
        first = ", ".join(map(str, list(content)[:3])) or "none at all"
        raise UserError(
            f"{path} is no CLIP state dict: the key {error} is missing; its first keys are {first}"
        ) from error
    except (RuntimeError, AttributeError, IndexError, ValueError, TypeError) as error:
        raise UserError(f"{path} is no CLIP state dict: {_one_line(error)}") from error
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


def _find(backbone: str, download_root: str | None) -> Path:
    """Return the file of a backbone other than the embedded one; download it if needed."""
    if backbone in clip.available_models():
        return _download(backbone, download_root)
    path = Path(backbone).expanduser()
    if path.is_file():
        return path
    names = [TINY, *clip.available_models()]
    remedy = f"give the path of a file with CLIP weights, or one of {', '.join(names)}"
    if path.suffix or path.is_dir() or (path.parent != Path() and path.parent.is_dir()):
        raise UserError(f"there is no file {backbone!r}: {remedy}")
    raise UserError(f"no backbone {backbone!r}{nearest(backbone, names)}: {remedy}")


def _download(name: str, root: str | None) -> Path:
    target = root or str(Path("~/.cache/clip").expanduser())
    try:
        return Path(clip.clip._download(clip.clip._MODELS[name], target))
    except (OSError, RuntimeError) as error:  # no network, no room, a wrong checksum
        raise UserError(
            f"the weights of {name} could not be downloaded to {target} ({_one_line(error)}): "
            "give the path of the file as the backbone instead"
        ) from error


def _read(path: Path) -> dict[str, Any]:
    """Return the dictionary of tensors in a file of either kind."""
    try:
        check_archive(path)
        if is_torchscript(path):
            return read_torchscript(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)|refused: (\S+)", str(error))
        if refused:
            name = refused[1] or refused[2]
            raise UserError(
                f"{path} was not read: reading it would run code in it ({name}); save only the "
                "model's state_dict"
            ) from error
        raise _damaged(path, error) from error
    except Exception as error:  # a damaged file fails in a dozen ways: zip, key, end of file, …
        raise _damaged(path, error) from error
    if not isinstance(content, dict):
        raise UserError(
            f"{path} is not a CLIP model: it holds a {type(content).__name__}, not a state dict"
        )
    return content


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path} cannot be read as CLIP weights ({_one_line(error)}): "
        "it is damaged or incomplete, copy it anew"
    )


def _one_line(error: Exception) -> str:
    """Return the message of an exception in one short line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _build(content: dict[str, Any]) -> CLIP:
    """Build a CLIP in fp32 from the tensors of a file, with their sizes."""
    state = content.get("state_dict", content)
    known: frozenset[int] | None = None
    if "token_ids" in content:
        known = frozenset(content["token_ids"].tolist())
        state = _with_all_tokens(state, content["token_ids"])
    state = {name: tensor for name, tensor in state.items() if not name.endswith(_NOT_WEIGHTS)}
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} is not finite")
    length = len(state["positional_embedding"])
    if length != CONTEXT_LENGTH:
        raise ValueError(f"it reads texts of {length} tokens, but CLIP reads {CONTEXT_LENGTH}")
    # build_model rounds to half precision, so load the fp32 weights once more.
    model = build_model(dict(state)).float()
    model.load_state_dict(state)
    model.known_tokens = known
    return model


def _with_all_tokens(state: dict[str, Tensor], token_ids: Tensor) -> dict[str, Tensor]:
    """Add the token embeddings that the tiny model's file omits.

    Their values are those of an untrained CLIP, N(0, 0.02), always the same.
    """
    rows = state["token_embedding.weight"].float()
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(_VOCABULARY, rows.shape[1], generator=generator) * 0.02
    table[token_ids.long()] = rows
    return {**state, "token_embedding.weight": table}

"""Load a CLIP by name, from a file, or the embedded tiny one; tokenise for it; set its precision.

Weights are read as tensors only: neither a pickle nor a TorchScript archive gets to run code.
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

from anchoropt_plugin.errors import UserError, nearest
from anchoropt_plugin.files.checkpoints import check_archive
from anchoropt_plugin.files.torchscript import is_torchscript, read_torchscript

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # clip imports pkg_resources, which says it is deprecated
    import clip
    import regex
    from clip.model import CLIP, build_model, convert_weights
    from clip.simple_tokenizer import SimpleTokenizer

__all__ = [
    "CONTEXT_LENGTH",
    "TINY",
    "load_clip",
    "to_precision",
    "tokenize",
    "unknown_words",
]

CONTEXT_LENGTH = 77
"""Tokens in a text of any CLIP, with start, end and padding."""

TINY = "tiny"
"""The backbone name of the embedded model."""

PRECISIONS = ("fp16", "fp32", "amp")

_TINY_FILE = Path(__file__).parents[1] / "assets" / "tiny_clip.pt"
_VOCABULARY = 49408
_LONGEST_TEXT = 10_000
"""Letters that are still split into tokens, in a time that grows with their square."""
_SHOWN = 500
_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")
_log = logging.getLogger("anchoropt_plugin")


def load_clip(backbone: str, *, download_root: str | None = None) -> CLIP:
    """Load a CLIP model: fp32, on the CPU, in eval mode, with all parameters frozen.

    Widths, depths and resolution are read off the weights.

    Args:
        backbone: one of ``clip.available_models()`` ("RN50", "ViT-B/16", …), downloaded unless it
            was before; or the path of a file, OpenAI's TorchScript archive or a state dict, also
            one under the key "state_dict"; or "tiny", the model that comes with this package.
        download_root: where downloads are kept; clip's own ``~/.cache/clip`` if None.

    Returns:
        The model. Its attribute ``known_tokens`` is the frozenset of token numbers that it was
        trained on, or None for all of them; see ``unknown_words``.

    Raises:
        UserError: there is no such backbone or file, the download fails, the file is damaged, is
            not a CLIP, or could only be read by running code that it brings along.

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
            f"{path} is no CLIP state dict: it has no {error}; its first keys are {first}"
        ) from error
    except (RuntimeError, AttributeError, IndexError, ValueError, TypeError) as error:
        raise UserError(f"{path} is no CLIP state dict: {_one_line(error)}") from error
    return model.requires_grad_(False).eval()


def tokenize(texts: Sequence[str]) -> Tensor:
    """Token numbers of ``texts``: start, words, end, then zeros.

    Args:
        texts: n texts of any case.

    Returns:
        (n, 77) int64. The end token has the highest number, so ``argmax(-1)`` finds it.

    Raises:
        UserError: a text has more than 77 tokens; the message has the text and its count.

    >>> tokenize(["a photo of a star."])[0, :8].tolist()
    [49406, 320, 1125, 539, 320, 1565, 269, 49407]
    """
    tokenizer = _tokenizer()
    start, end = (tokenizer.encoder[f"<|{word}oftext|>"] for word in ("start", "end"))
    tokens = torch.zeros(len(texts), CONTEXT_LENGTH, dtype=torch.long)
    for row, text in zip(tokens, texts, strict=True):
        if len(text) > _LONGEST_TEXT:
            raise UserError(
                f"a text has {len(text)} letters, and CLIP reads {CONTEXT_LENGTH} tokens at most; "
                f"shorten it: {text[:_SHOWN]!r} …"
            )
        numbers = [start, *tokenizer.encode(text), end]
        if len(numbers) > CONTEXT_LENGTH:
            raise UserError(
                f"a text has {len(numbers)} tokens, CLIP reads {CONTEXT_LENGTH} at most; "
                f"shorten it: {text[:_SHOWN]!r}{' …' if len(text) > _SHOWN else ''}"
            )
        row[: len(numbers)] = torch.tensor(numbers)
    return tokens


def unknown_words(model: CLIP, texts: Sequence[str]) -> list[str]:
    """The words of ``texts`` that ``model`` was never trained on, each once, as first met.

    Only the embedded tiny model has such words: to it they are noise. A word counts as known if
    all of its byte-pair tokens are.

    Args:
        model: what ``load_clip`` returned, or any CLIP.
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
    """Move ``model`` to ``device`` in the precision that the public trainers call by this name.

    Args:
        model: a CLIP; it is changed in place.
        precision: "fp32" and "amp" keep all weights in float32 (amp casts while it computes);
            "fp16" is CLIP's own half precision, where layer norms and embeddings stay float32.
        device: where to; on the CPU every precision becomes fp32, and the log says so.

    Returns:
        The same model.

    Raises:
        UserError: there is no such precision.

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
    """The file of a backbone that is not the embedded one, downloaded if need be."""
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
    """The dictionary of tensors in a file of either kind."""
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
                f"{path} was not read: it would have to run code of its own ({name}); "
                "save the model's state_dict alone"
            ) from error
        raise _damaged(path, error) from error
    except Exception as error:  # a damaged file fails in a dozen ways: zip, key, end of file, …
        raise _damaged(path, error) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is no CLIP: it holds a {type(content).__name__}, no state dict")
    return content


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path} cannot be read as CLIP weights ({_one_line(error)}): "
        "it is damaged or incomplete, get it again"
    )


def _one_line(error: Exception) -> str:
    """What an exception says, in one line of bearable length."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _build(content: dict[str, Any]) -> CLIP:
    """A CLIP of the sizes that the tensors of a file have, holding them in fp32."""
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
        raise ValueError(f"it reads texts of {length} tokens, and a CLIP {CONTEXT_LENGTH}")
    # build_model rounds to half precision, so fp32 weights are loaded a second time.
    model = build_model(dict(state)).float()
    model.load_state_dict(state)
    model.known_tokens = known
    return model


def _with_all_tokens(state: dict[str, Tensor], token_ids: Tensor) -> dict[str, Tensor]:
    """Fill in the token embeddings that the tiny model's file leaves out.

    They get the values an untrained CLIP has, N(0, 0.02), always the same ones.
    """
    rows = state["token_embedding.weight"].float()
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(_VOCABULARY, rows.shape[1], generator=generator) * 0.02
    table[token_ids.long()] = rows
    return {**state, "token_embedding.weight": table}

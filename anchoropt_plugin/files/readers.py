"""Read texts, json and images; a broken file raises a ``UserError`` of one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import UserError
from .atomic import write_text

_WHITE_OF_16_BITS = 65535
# Without EPS: PIL hands PostScript to a program that runs it.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


def read_text(fpath: str | Path) -> str:
    """Return the content of a text file.

    Raises:
        UserError: a missing file, or a file not in UTF-8.
    """
    try:
        return Path(fpath).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot open {fpath}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{fpath} is not text in UTF-8: save it as UTF-8") from error


def read_names(fpath: str | Path) -> list[str]:
    """Return the names in a text file, one per line; empty lines are skipped.

    Raises:
        UserError: a missing file, or a file not in UTF-8.
    """
    return [line.strip() for line in read_text(fpath).splitlines() if line.strip()]


def read_json(fpath: str | Path) -> Any:
    """Return the content of a json file.

    Raises:
        UserError: a missing or malformed file; the message names the line.
    """
    try:
        return json.loads(read_text(fpath))
    except json.JSONDecodeError as error:
        raise UserError(f"{fpath}, line {error.lineno}: not valid json: {error.msg}") from error
    except (RecursionError, ValueError) as error:  # too deeply nested, too many digits
        raise UserError(f"{fpath}: not valid json: {error}") from error


def json_or_none(text: str) -> Any:
    """Return the content of a json text, or None for another text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # the latter: too deeply nested
        return None


def write_json(obj: Any, fpath: str | Path) -> None:
    """Write ``obj`` as json, whole or not at all; create the folder if it is missing."""
    path = Path(fpath)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(obj, indent=4))


def read_image(path: str | Path) -> Image.Image:
    """Return the image at ``path`` in RGB, 8 bits a channel.

    Raises:
        UserError: a missing, truncated or too large image, or one whose white level is unknown.
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            return to_rgb(image)
    except FileNotFoundError as error:
        raise UserError(f"the image {path} is missing; put it back, or fix the split") from error
    except Exception as error:  # PIL answers a broken file with a dozen different exceptions
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"cannot read the image {path}: {reason}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Return ``image`` in RGB, 8 bits a channel.

    Raises:
        ValueError: an image whose white level is unknown.
    """
    if image.mode == "F":
        raise ValueError("the white level of float pixels is unknown; save the image with 8 bits")
    if image.mode.startswith("I"):  # PIL would clip values above 255
        values = np.asarray(image)
        if values.min() < 0 or values.max() > _WHITE_OF_16_BITS:
            raise ValueError("more than 16 bits a pixel; save the image with 8 or 16 bits")
        image = Image.fromarray((values / (_WHITE_OF_16_BITS / 255)).round().astype(np.uint8))
    return image.convert("RGB")

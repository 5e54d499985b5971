"""Read texts, json and images; each fault in them is one line for the user."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import UserError
from .atomic import atomic_write

_WHITE_OF_16_BITS = 65535
# PIL hands PostScript to a program that runs it.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


def read_text(fpath: str | Path) -> str:
    """Return what a text file holds.

    Raises:
        UserError: It is missing, or not in UTF-8.
    """
    try:
        return Path(fpath).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot open {fpath}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{fpath} is not text in UTF-8: save it as UTF-8") from error


def read_json(fpath: str | Path) -> Any:
    """Return what a json file holds.

    Raises:
        UserError: It is missing or malformed; the line is named.
    """
    try:
        return json.loads(read_text(fpath))
    except json.JSONDecodeError as error:
        raise UserError(f"{fpath}, line {error.lineno}: not valid json: {error.msg}") from error
    except (RecursionError, ValueError) as error:  # too deeply nested, too many digits
        raise UserError(f"{fpath}: not valid json: {error}") from error


def write_json(obj: Any, fpath: str | Path) -> None:
    """Write ``obj`` as json, whole or not at all; the folder is made where it is missing."""
    path = Path(fpath)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(json.dumps(obj, indent=4).encode())


def read_image(path: str | Path) -> Image.Image:
    """Return the picture at ``path`` in RGB, 8 bits a channel.

    Raises:
        UserError: It is missing, truncated, too large, or not a picture with a known white.
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            return to_rgb(image)
    except FileNotFoundError as error:
        raise UserError(f"the picture {path} is missing; put it back, or mend the split") from error
    except Exception as error:  # PIL answers a broken file with a dozen different exceptions
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"cannot read the picture {path}: {reason}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Return ``image`` in RGB, 8 bits a channel.

    Raises:
        ValueError: Nothing says which of its values are white.
    """
    if image.mode == "F":
        raise ValueError("nothing says which of its float pixels are white; save it with 8 bits")
    if image.mode.startswith("I"):  # PIL would cut off what is above 255
        values = np.asarray(image)
        if values.min() < 0 or values.max() > _WHITE_OF_16_BITS:
            raise ValueError("it has more than 16 bits a pixel; save it with 8 or 16")
        image = Image.fromarray((values / (_WHITE_OF_16_BITS / 255)).round().astype(np.uint8))
    return image.convert("RGB")

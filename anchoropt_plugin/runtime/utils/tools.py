"""Files, pictures, seeds and the machine."""

from __future__ import annotations

import json
import os
import platform
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image

from ...checkpoints import atomic_write
from ...errors import UserError

_WHITE_OF_16_BITS = 65535
# PIL hands PostScript to a program that runs it.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


def mkdir_if_missing(dirname: str | Path) -> None:
    """Make a folder and its parents, where they are missing."""
    Path(dirname).mkdir(parents=True, exist_ok=True)


def check_isfile(fpath: str | Path) -> bool:
    """Return whether ``fpath`` is a file; warn where it is not."""
    found = Path(fpath).is_file()
    if not found:
        warnings.warn(f'No file found at "{fpath}"', stacklevel=2)
    return found


def listdir_nohidden(path: str | Path, sort: bool = False) -> list[str]:
    """Return the names in a folder that do not begin with a dot."""
    names = [entry.name for entry in Path(path).iterdir() if not entry.name.startswith(".")]
    return sorted(names) if sort else names


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


def collect_env_info() -> str:
    """Return a few lines on the machine and on what is installed."""
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    facts = {
        "OS": platform.platform(),
        "Python": platform.python_version(),
        "CPU cores": os.cpu_count(),
        "GPUs": ", ".join(devices) or "none",
        "CUDA of torch": torch.version.cuda or "none",
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
        "Pillow": PIL.__version__,
    }
    return "\n".join(f"{name}: {fact}" for name, fact in facts.items())


def tolist_if_not(x: Any) -> list[Any]:
    """Return ``x`` if it is a list, else a list of it."""
    return x if isinstance(x, list) else [x]

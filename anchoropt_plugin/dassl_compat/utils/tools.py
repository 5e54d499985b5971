"""Dassl's small tools: files, images, seeds, facts about the machine."""

from __future__ import annotations

import os
import platform
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import torchvision

from ...files.images import read_image
from ...files.readers import read_json, write_json
from ...process.code_version import package_version
from ...process.randomness import set_random_seed

__all__ = [
    "check_isfile",
    "collect_env_info",
    "listdir_nohidden",
    "mkdir_if_missing",
    "read_image",
    "read_json",
    "set_random_seed",
    "tolist_if_not",
    "write_json",
]


def mkdir_if_missing(dirname: str | Path) -> None:
    """Create a folder and its parents, if they are missing."""
    Path(dirname).mkdir(parents=True, exist_ok=True)


def check_isfile(fpath: str | Path) -> bool:
    """Return whether ``fpath`` is a file; warn if not."""
    found = Path(fpath).is_file()
    if not found:
        warnings.warn(f'No file found at "{fpath}"', stacklevel=2)
    return found


def listdir_nohidden(path: str | Path, sort: bool = False) -> list[str]:
    """Return the names in a folder that do not begin with a dot."""
    names = [entry.name for entry in Path(path).iterdir() if not entry.name.startswith(".")]
    return sorted(names) if sort else names


def collect_env_info() -> str:
    """Return a few lines on the machine and the installed versions."""
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    facts = {
        "OS": platform.platform(),
        "Python": platform.python_version(),
        "CPU cores": os.cpu_count(),
        "GPUs": ", ".join(devices) or "none",
        "CUDA of torch": torch.version.cuda or "none",
        "anchoropt-plugin": package_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
        "Pillow": PIL.__version__,
    }
    return "\n".join(f"{name}: {fact}" for name, fact in facts.items())


def tolist_if_not(x: Any) -> list[Any]:
    """Return ``x`` if ``x`` is a list, else ``[x]``."""
    return x if isinstance(x, list) else [x]

"""Read the tensors of a TorchScript archive, such as OpenAI's CLIP files, and nothing else.

``torch.jit.load`` would compile and run the archive's code, and is deprecated. An archive is a zip
file: ``data.pkl`` describes a tree of modules, each a plain object whose attributes are numbers,
tensors and further modules, and the files ``data/<key>`` hold the tensors' bytes.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


def is_torchscript(path: Path) -> bool:
    """Whether ``path`` is a TorchScript archive, as against any other file.

    Raises:
        OSError: the file cannot be opened.
    """
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """The state dict of the module in a TorchScript archive, on the CPU.

    Args:
        path: a file that ``torch.jit.save`` wrote.

    Returns:
        Tensors by dotted name, in the archive's dtypes: parameters, buffers, and plain attributes
        too, which a state dict would leave out.

    Raises:
        pickle.UnpicklingError: the archive asks for a Python object that is no tensor; the message
            has "refused: " and its name.
        zipfile.BadZipFile, KeyError, ValueError, EOFError: the archive is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        pickled = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        folder = pickled.removesuffix("data.pkl")
        root = _TensorUnpickler(archive, folder, archive.read(pickled)).load()
    if not isinstance(root, _Module):
        raise ValueError("the archive holds no module")
    return dict(_named_tensors(root, ""))


class _Module:
    """Stands in for every class of the archive; unpickling fills its attributes."""


def _named_tensors(module: _Module, prefix: str) -> list[tuple[str, Tensor]]:
    found: list[tuple[str, Tensor]] = []
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            found.append((prefix + name, value))
        elif isinstance(value, _Module):
            found += _named_tensors(value, f"{prefix}{name}.")
    return found


def _view(
    storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object
) -> Tensor:
    """What ``torch._utils._rebuild_tensor_v2`` does, with bounds that as_strided checks."""
    return storage.as_strided(size, stride, offset)


def _first(value: object, *_: object) -> object:
    return value


# The one written in Python: see checkpoints.py.
_PlainUnpickler: Any = pickle._Unpickler


class _TensorUnpickler(_PlainUnpickler):
    """An unpickler to whom the only callables are ``_Module``, ``_view``, ``_first`` and dict."""

    def __init__(self, archive: zipfile.ZipFile, folder: str, pickled: bytes) -> None:
        super().__init__(io.BytesIO(pickled))
        self._archive, self._folder = archive, folder
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch._utils" and name == "_rebuild_tensor_v2":
            return _view
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if module == "collections" and name == "OrderedDict":
            return dict
        if module == "torch.jit._pickle" or (module, name) == ("torch", "device"):
            return _first  # typed lists and dicts, devices: they hold no weights
        if module.split(".")[0] == "__torch__":
            return _Module
        raise pickle.UnpicklingError(f"refused: {module}.{name}")

    def persistent_load(self, pid: tuple[str, torch.dtype, str, str, int]) -> Tensor:
        _, dtype, key, _, _ = pid
        if key not in self._storages:
            data = bytearray(self._archive.read(f"{self._folder}data/{key}"))
            self._storages[key] = torch.frombuffer(data, dtype=dtype)
        return self._storages[key]

"""Read the tensors of a TorchScript archive, such as OpenAI's CLIP files, and nothing else.

``torch.jit.load`` would compile and run the archive's code, and is deprecated. An archive is a zip
file. Its ``data.pkl`` describes a tree of modules: plain objects whose attributes are numbers,
tensors and further modules. The files ``data/<key>`` hold the bytes of the tensors.
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
    """Return whether ``path`` is a TorchScript archive.

    Raises:
        OSError: a file that cannot be opened.
    """
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Return the state dict of the module in a TorchScript archive, on the CPU.

    Args:
        path: a file written by ``torch.jit.save``.

    Returns:
        Tensors by dotted name, in the archive's dtypes: parameters, buffers, and also tensors
        that are plain attributes, which a state dict omits.

    Raises:
        pickle.UnpicklingError: an archive that names a Python object other than a tensor; the
            message is "refused: " and the object's name.
        zipfile.BadZipFile, KeyError, ValueError, EOFError: a damaged archive.
    """
    with zipfile.ZipFile(path) as archive:
        pickled = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        folder = pickled.removesuffix("data.pkl")
        root = _TensorUnpickler(archive, folder, archive.read(pickled)).load()
    if not isinstance(root, _Module):
        raise ValueError("the archive holds no module")
    return dict(_named_tensors(root, ""))


class _Module:
    """A replacement for every class of the archive; unpickling sets its attributes."""


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
    """Do the work of ``torch._utils._rebuild_tensor_v2``; as_strided checks the bounds."""
    return storage.as_strided(size, stride, offset)


def _first(value: object, *_: object) -> object:
    return value


# Python's version: see checkpoints.py.
_PlainUnpickler: Any = pickle._Unpickler


class _TensorUnpickler(_PlainUnpickler):
    """An unpickler that calls nothing but ``_Module``, ``_view``, ``_first`` and dict."""

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
            return _first  # typed lists and dicts, devices: they hold no tensors
        if module.split(".")[0] == "__torch__":
            return _Module
        raise pickle.UnpicklingError(f"refused: {module}.{name}")

    def persistent_load(self, pid: tuple[str, torch.dtype, str, str, int]) -> Tensor:
        _, dtype, key, _, _ = pid
        if key not in self._storages:
            data = bytearray(self._archive.read(f"{self._folder}data/{key}"))
            self._storages[key] = torch.frombuffer(data, dtype=dtype)
        return self._storages[key]

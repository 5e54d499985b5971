"""Reading and writing checkpoints: reading never runs code, writing is whole or not at all.

Published checkpoints of the CoOp family carry a pickled learning-rate scheduler, which
``torch.load(weights_only=True)`` refuses. :func:`load` reads them all the same: what is not a
tensor or a plain container becomes an inert :class:`Foreign` object.
"""

from __future__ import annotations

import collections
import io
import pickle
import reprlib
import types
import zipfile
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch

from ..errors import UserError
from .atomic import atomic_write
from .torchscript import is_torchscript

_SAFE_GLOBALS: dict[tuple[str, str], Any] = {
    ("__builtin__", "set"): set,  # Python 2's name, which torch's pickle protocol 2 writes
    ("__builtin__", "frozenset"): frozenset,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "Counter"): collections.Counter,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch._utils", "_rebuild_tensor"): torch._utils._rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
}
_SAFE_GLOBALS |= {
    ("torch", name): value for name, value in vars(torch).items() if isinstance(value, torch.dtype)
}

# A zip archive, or the magic number with which torch's format from before 1.6 begins.
_FIRST_BYTES = (b"PK\x03\x04", pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2))


class Foreign:
    """Stands in for an object of a class that is not a tensor or a plain container.

    It can be made, called and filled in any way a pickle asks for, and does nothing.
    ``state`` keeps the attributes the pickle gave it, themselves read the same safe way.
    """

    state: Any = None

    def __new__(cls, *args: Any, **kwargs: Any) -> Foreign:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __call__(self, *args: Any, **kwargs: Any) -> Foreign:
        return Foreign()

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        """Take an item of a pickled list subclass, and drop it."""

    def extend(self, items: Any) -> None:
        """Take items of a pickled list subclass, and drop them."""

    def add(self, item: Any) -> None:
        """Take an item of a pickled set subclass, and drop it."""


# The one written in Python: the one in C takes gigabytes where a few bytes of a pickle ask for it.
PlainUnpickler: Any = pickle._Unpickler


class _SafeUnpickler(PlainUnpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = _SAFE_GLOBALS.get((module, name))
        return type(name, (Foreign,), {}) if found is None else found


def _safe_pickle_module() -> types.ModuleType:
    """Return what ``torch.load`` takes as ``pickle_module``."""
    module = types.ModuleType("safe_pickle")
    module.Unpickler = _SafeUnpickler  # type: ignore[attr-defined]
    module.load = lambda file, **kwargs: _SafeUnpickler(file, **kwargs).load()  # type: ignore[attr-defined]
    return module


def load(path: str | Path, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """Return the dict in the checkpoint at ``path`` without running any code from it.

    Both of torch's formats are read, the zip archive and the older one.

    Args:
        path: The file.
        map_location: The device on which its tensors are put.

    Returns:
        The checkpoint; objects that are neither tensors nor plain containers are
        :class:`Foreign`.

    Raises:
        UserError: The file is missing, truncated, not a checkpoint, or does not hold a dict; its
            ``state_dict``, where it has one, is not a dict of finite tensors by name; its
            ``epoch``, where it has one, is no number from 0.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save({"state_dict": {"ctx": torch.zeros(4, 8)}, "epoch": 5}, f"{folder}/model.pth")
    ...     load(f"{folder}/model.pth")["epoch"]
    5
    """
    path = Path(path)
    _check_first_bytes(path)
    try:
        check_archive(path)
        checkpoint = _load(path, map_location)
    except Exception as error:  # torch answers a broken file with a dozen different exceptions
        # torch adds a paragraph of guesses.
        reason = shorten(str(error) or type(error).__name__, 160, placeholder="…")
        raise UserError(
            f"cannot read the checkpoint {path}: {reason} (it may be truncated; copy it anew)"
        ) from error
    if not isinstance(checkpoint, dict):
        raise UserError(
            f"{path} holds a {type(checkpoint).__name__}, but a checkpoint is a dict; "
            "give a file that a training run wrote"
        )
    fault = _fault_in(checkpoint)
    if fault:
        raise UserError(f"{path} is no sound checkpoint: {fault}; copy it anew, or train again")
    return checkpoint


def _fault_in(checkpoint: dict[str, Any]) -> str:
    """What is wrong with the parts of a checkpoint that are used by their names, or nothing."""
    epoch, state = checkpoint.get("epoch", 0), checkpoint.get("state_dict", {})
    if type(epoch) is not int or epoch < 0:
        return f"its epoch is {reprlib.repr(epoch)}"  # a few bytes can make gigabytes of a repr
    if not isinstance(state, dict):
        return f"its state_dict is a {type(state).__name__}"
    for name, value in state.items():
        if not isinstance(name, str):
            return f"{reprlib.repr(name)} in its state_dict is no name"
        if not isinstance(value, torch.Tensor):
            return f"{name!r} in its state_dict is a {type(value).__name__}, not a tensor"
    for name, value in (*state.items(), *checkpoint.items()):  # a bare state dict has none in it
        if not isinstance(value, torch.Tensor):
            continue
        if value.layout is not torch.strided or value.device.type == "meta":
            return f"{name} in it has no values of its own"
        # A view that repeats what it holds can claim any size.
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            return f"{name} in it is {tuple(value.shape)}, more than the file holds"
        if not torch.isfinite(value).all():
            return f"{name} in it is not finite"
    return ""


def check_archive(path: Path) -> None:
    """Check that the records of a zip archive, if it is one, are as large as they claim to be.

    Raises:
        ValueError: one is packed, as torch never packs what it reads; unpacking could fill memory.
        zipfile.BadZipFile: the archive is damaged.
    """
    if not zipfile.is_zipfile(path):
        return
    room = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            is_read = info.filename.endswith(".pkl") or "/data/" in info.filename
            if info.file_size > room or (is_read and info.compress_type != zipfile.ZIP_STORED):
                raise ValueError(
                    f"{info.filename!r} in it claims {info.file_size} bytes, the whole file has "
                    f"{room}"
                )


def _check_first_bytes(path: Path) -> None:
    try:
        with path.open("rb") as file:
            head = file.read(max(map(len, _FIRST_BYTES)))
    except (OSError, ValueError) as error:  # the latter: there is a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot open the checkpoint {path}: {reason}") from error
    if not head.startswith(_FIRST_BYTES):
        raise UserError(f"{path} is not a checkpoint: it is in neither of torch's file formats")


def _load(path: Path, map_location: str | torch.device) -> Any:
    if is_torchscript(path):  # some versions of torch would run it
        raise ValueError("it is a TorchScript archive, a program with weights")
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError:
        pass
    return torch.load(
        path,
        map_location=map_location,
        weights_only=False,
        pickle_module=_safe_pickle_module(),
    )


def save(obj: Any, path: str | Path) -> None:
    """Write ``obj`` to ``path`` with ``torch.save``, whole or not at all.

    Raises:
        OSError: The folder cannot be written to; a file that was there is as before.
    """
    # Into memory first: on a full disk torch's own writer raises an error that does not say so.
    content = io.BytesIO()
    torch.save(obj, content)
    with atomic_write(path) as file:
        file.write(content.getbuffer())

"""Read checkpoints without running code; write them whole or not at all.

Published checkpoints of the CoOp family hold a pickled learning-rate scheduler, which
``torch.load(weights_only=True)`` refuses. :func:`load` reads such checkpoints too: an object that
is neither a tensor nor a plain container becomes an inert :class:`Foreign` object.
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
from .checkpoint_folder import epoch_in_name
from .torchscript import is_torchscript

_SAFE_GLOBALS: dict[tuple[str, str], Any] = {
    ("__builtin__", "set"): set,  # Python 2's module name, which pickle protocol 2 writes
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

# A zip archive, or the magic number at the start of torch's format from before 1.6.
_FIRST_BYTES = (b"PK\x03\x04", pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2))


class Foreign:
    """An inert replacement for an object that is neither a tensor nor a plain container.

    A pickle can create, call and fill the object in any way; nothing happens.

    Attributes:
        state: the attributes in the pickle, read in the same safe way.
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
        """Ignore an item of a pickled list subclass."""

    def extend(self, items: Any) -> None:
        """Ignore items of a pickled list subclass."""

    def add(self, item: Any) -> None:
        """Ignore an item of a pickled set subclass."""


# Python's version: a few bytes of a pickle can make the C version allocate gigabytes.
PlainUnpickler: Any = pickle._Unpickler


class _SafeUnpickler(PlainUnpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = _SAFE_GLOBALS.get((module, name))
        return type(name, (Foreign,), {}) if found is None else found


def _safe_pickle_module() -> types.ModuleType:
    """Return a module for the argument ``pickle_module`` of ``torch.load``."""
    module = types.ModuleType("safe_pickle")
    module.Unpickler = _SafeUnpickler  # type: ignore[attr-defined]
    module.load = lambda file, **kwargs: _SafeUnpickler(file, **kwargs).load()  # type: ignore[attr-defined]
    return module


def load(path: str | Path) -> dict[str, Any]:
    """Return the dict in a checkpoint, tensors on the CPU, without running any code from the file.

    Both of torch's formats can be read: the zip archive and the older one.

    Args:
        path: the file.

    Returns:
        The checkpoint. Objects that are neither tensors nor plain containers are
        :class:`Foreign`.

    Raises:
        UserError: a missing or truncated file, a file that holds no checkpoint dict, a
            ``state_dict`` that is not a dict of finite tensors by name, or an ``epoch`` that is
            not an int from 0, or another one than that in the file's name.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save({"state_dict": {"ctx": torch.zeros(4, 8)}, "epoch": 5}, f"{folder}/model.pth")
    ...     load(f"{folder}/model.pth")["epoch"]
    5
    """
    path = Path(path).expanduser()
    _check_first_bytes(path)
    try:
        check_archive(path)
        checkpoint = _load(path)
    except Exception as error:  # torch answers a broken file with a dozen different exceptions
        # torch adds a paragraph of guesses to its message.
        reason = shorten(str(error) or type(error).__name__, 160, placeholder="…")
        raise UserError(
            f"cannot read the checkpoint {path}: {reason} (if it is truncated, copy it again)"
        ) from error
    if not isinstance(checkpoint, dict):
        raise UserError(
            f"{path} holds a {type(checkpoint).__name__}, but a checkpoint is a dict; "
            "give a file that a training run wrote"
        )
    fault = _fault_in(checkpoint)
    if fault:
        raise UserError(f"{path} is a broken checkpoint: {fault}; copy it again, or train again")
    named = epoch_in_name(path)
    inside = checkpoint.get("epoch", named)
    if named not in (None, inside):  # its numbers would count for the other epoch
        raise UserError(
            f"{path} is named after epoch {named}, but holds epoch {inside}: rename it "
            f"model.pth.tar-{inside}, or copy the checkpoint of epoch {named} again"
        )
    return checkpoint


def _fault_in(checkpoint: dict[str, Any]) -> str:
    """Return the first fault in a checkpoint's epoch, state dict or tensors, or an empty string."""
    epoch, state = checkpoint.get("epoch", 0), checkpoint.get("state_dict", {})
    if type(epoch) is not int or epoch < 0:
        return f"its epoch is {reprlib.repr(epoch)}"  # repr itself could produce gigabytes
    if not isinstance(state, dict):
        return f"its state_dict is a {type(state).__name__}"
    for name, value in state.items():
        if not isinstance(name, str):
            return f"the key {reprlib.repr(name)} in its state_dict is not a string"
        if not isinstance(value, torch.Tensor):
            return f"{name!r} in its state_dict is a {type(value).__name__}, not a tensor"
    for name, value in (*state.items(), *checkpoint.items()):  # the latter: a bare state dict
        if not isinstance(value, torch.Tensor):
            continue
        if value.layout is not torch.strided or value.device.type == "meta":
            return f"its {name} has no values"
        # A view that repeats its storage can claim any size.
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            return f"its {name} is {tuple(value.shape)}, more than the file holds"
        if not torch.isfinite(value).all():
            return f"its {name} is not finite"
    return ""


def check_archive(path: Path) -> None:
    """Check that no record of a zip archive claims more bytes than the file has.

    Other files pass. A compressed record is refused too: torch never compresses the records that
    it reads, and decompression could fill the memory.

    Raises:
        ValueError: a compressed record, or one larger than the file.
        zipfile.BadZipFile: a damaged archive.
    """
    if not zipfile.is_zipfile(path):
        return
    room = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            is_read = info.filename.endswith(".pkl") or "/data/" in info.filename
            if info.file_size > room or (is_read and info.compress_type != zipfile.ZIP_STORED):
                raise ValueError(
                    f"its record {info.filename!r} claims {info.file_size} bytes, but the whole "
                    f"file has {room}"
                )


def _check_first_bytes(path: Path) -> None:
    try:
        with path.open("rb") as file:
            head = file.read(max(map(len, _FIRST_BYTES)))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot open the checkpoint {path}: {reason}") from error
    if not head.startswith(_FIRST_BYTES):
        raise UserError(f"{path} is not a checkpoint: it has neither of torch's file formats")


def _load(path: Path) -> Any:
    if is_torchscript(path):  # some versions of torch would run its code
        raise ValueError("it is a TorchScript archive, a program with weights")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        pass
    return torch.load(
        path, map_location="cpu", weights_only=False, pickle_module=_safe_pickle_module()
    )


def save(obj: Any, path: str | Path) -> None:
    """Write ``obj`` to ``path`` with ``torch.save``, whole or not at all.

    Raises:
        OSError: a folder that cannot be written to; an existing file stays unchanged.
    """
    # Into memory first: on a full disk torch's own writer raises an error that hides the cause.
    content = io.BytesIO()
    torch.save(obj, content)
    with atomic_write(path) as file:
        file.write(content.getbuffer())

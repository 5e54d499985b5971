"""Reading and writing checkpoints: reading never runs code, writing is whole or not at all.

Published checkpoints of the CoOp family carry a pickled learning-rate scheduler, which
``torch.load(weights_only=True)`` refuses. :func:`load` reads them all the same: what is not a
tensor or a plain container becomes an inert :class:`Foreign` object.
"""

from __future__ import annotations

import collections
import contextlib
import io
import os
import pickle
import platform
import reprlib
import types
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import IO, Any, NamedTuple

import torch

from .errors import UserError
from .process.distributed import is_main
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
_PlainUnpickler: Any = pickle._Unpickler


class _SafeUnpickler(_PlainUnpickler):
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


@contextmanager
def atomic_write(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a file for writing that takes its name only when the block ends without an error.

    Its content is on the disk before that, and its name is when this returns. What a process that
    was killed has left of the same file is removed.
    Of several processes the main one writes; in the others what is written is dropped.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_write(f"{folder}/note.txt") as file:
    ...         _ = file.write(b"done")
    ...     os.listdir(folder)
    ['note.txt']
    """
    if not is_main():
        yield io.BytesIO()
        return
    path = Path(path)
    _remove_unfinished(path)
    unfinished = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.part")
    try:
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _remove_unfinished(path: Path) -> None:
    """Remove what processes of this machine that are no more have left of ``path``."""
    start = f".{path.name}.{platform.node()}."
    with contextlib.suppress(OSError):  # no such folder: opening the file will say so
        for other in path.parent.iterdir():
            number = other.name.removeprefix(start).removesuffix(".part")
            is_one = other.name == f"{start}{number}.part" and number.isdecimal()
            if is_one and not _lives(int(number)):
                other.unlink(missing_ok=True)


def _lives(pid: int) -> bool:
    if os.name != "posix":  # there os.kill ends it
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # somebody else's
        pass
    return True


def _sync_folder(folder: Path) -> None:
    """Have the names in a folder written to the disk, where the system can."""
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


class FewShotItem(NamedTuple):
    """One picture of a few-shot file: its path as written, label, domain and class name."""

    impath: str
    label: int
    domain: int
    classname: str


class _Datum:
    """Takes the attributes of a pickled ``Datum``."""

    def __setstate__(self, state: Any) -> None:
        kinds = {"_impath": str, "_label": int, "_domain": int, "_classname": str}
        for name, kind in kinds.items():
            if type(state[name]) is not kind:
                raise pickle.UnpicklingError(f"{name} is a {type(state[name]).__name__}")
        self.item = FewShotItem(*(state[name] for name in kinds))


class _FewShotUnpickler(_PlainUnpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) != ("dassl.data.datasets.base_dataset", "Datum"):
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _Datum


def load_fewshot_pickle(path: str | Path) -> dict[str, list[FewShotItem]]:
    """Return the lists in a public ``shot_{k}-seed_{s}.pkl``, without running code from it.

    Args:
        path: A pickle of ``{"train": [Datum, ...], "val": [Datum, ...]}``; ``val`` may be
            missing, as in ImageNet's.

    Raises:
        UserError: The file cannot be read, or holds anything else.
    """
    try:
        with Path(path).open("rb") as file:
            lists = _FewShotUnpickler(file).load()
        return {str(name): [datum.item for datum in items] for name, items in lists.items()}
    except Exception as error:  # a broken pickle can raise almost anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{path} is not a few-shot file ({type(error).__name__}: {reason}); delete it to have "
            "the shots drawn anew"
        ) from error

"""Processes for runs, forked from a server that has imported everything that is slow to import."""

from __future__ import annotations

import contextlib
import functools
import io
import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver
from typing import Any

import torch

from ..errors import UserError
from .repository import Repository, Value


def prepare_server(repository: Repository) -> Any:
    """Return the multiprocessing context that forks from a server with all imports done."""
    # The server reads these when it starts, before anything is computed.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # A process that asked CUDA's runtime cannot fork, and the import of clip asks for a GPU.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    folder = str(repository.folder)
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if folder not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [folder, *paths]))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"{__package__}.worker", *repository.preload])
    return context


def context_of(repository: Repository) -> Any:
    """Return the context for processes of runs: the server's forks, unless CUDA fails in them.

    It fails where a module of the repository uses CUDA when it is imported, or where the driver has
    no NVML. Then each process imports everything itself.
    """
    context = prepare_server(repository)
    if torch.cuda.is_available() and not _forks_have_cuda():
        return multiprocessing.get_context("spawn")
    return context


@functools.cache
def _forks_have_cuda() -> bool:
    with ProcessPoolExecutor(1, multiprocessing.get_context("forkserver")) as pool:
        return pool.submit(_has_cuda).result()


def _has_cuda() -> bool:
    try:
        torch.cuda.init()
    except (AssertionError, RuntimeError):  # the former in a PyTorch without CUDA
        return False
    return True


def start_server(repository: Repository) -> None:
    """Start the server, which imports while this process goes on."""
    prepare_server(repository)
    forkserver.ensure_running()


def in_fork(repository: Repository, function: Callable[..., Value], *args: Any) -> Value:
    """Return ``function(*args)``, computed in a new process; its exceptions are raised here.

    Raises:
        UserError: the process was killed.
    """
    with ProcessPoolExecutor(1, context_of(repository)) as pool:
        try:
            return pool.submit(_quietly, function, *args).result()
        except BrokenProcessPool as error:
            raise UserError("a process ended at once, for example out of memory") from error


def end_with_parent() -> None:
    """End this process when its parent ends, even if the parent is killed."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _quietly(function: Callable[..., Value], *args: Any) -> Value:
    end_with_parent()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return function(*args)

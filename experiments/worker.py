"""One run in a process of its own, forked where everything is imported already.

Such a process has computed nothing before, so its numbers are those of ``python train.py``; but it
starts in a fraction of a second, where imports take seconds.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import platform
import re
import resource
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

import train
from anchoropt_plugin.config.record import RECORD
from anchoropt_plugin.files.atomic import atomic_write
from anchoropt_plugin.version import VERSION

from .plan import Run
from .results import newest_log, write_facts

EPOCH = re.compile(r"^epoch \[(\d+)/(\d+)\]", re.MULTILINE)
STAGE_TWO = re.compile(r"^Stage 2: ", re.MULTILINE)


class _Output(io.TextIOBase):
    """Takes what a run prints, which its own log.txt keeps, and tells how far it is."""

    def __init__(self, tell: Callable[[tuple[Any, ...]], None]) -> None:
        self.tell = tell

    def write(self, text: str) -> int:
        for epoch, epochs in EPOCH.findall(text):
            self.tell(("epoch", int(epoch), int(epochs)))
        if STAGE_TWO.search(text):
            self.tell(("anchors",))
        return len(text)


def perform(run: Run, to_parent: Connection, environment: dict[str, str], commit: str) -> None:
    """Do a run; what ``to_parent`` receives is told in ``execution.py``.

    Args:
        run: what to do.
        to_parent: takes ("epoch", now, of), ("anchors",) and ("failed", why).
        environment: variables for this process, as CUDA_VISIBLE_DEVICES.
        commit: of the repository.
    """
    os.environ.update(environment)
    # The server that this is forked from may have been started before the variable was set.
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1").partition(",")[0]))
    _end_with_parent()
    errors = io.StringIO()
    started = time.time()
    with contextlib.redirect_stdout(_Output(to_parent.send)), contextlib.redirect_stderr(errors):
        try:
            status = train.main(list(run.argv))
        except Exception:  # a fault of the program's: the others go on
            traceback.print_exc()
            status = 1
    if status:
        said = errors.getvalue().strip() or f"exit status {status}"
        log = newest_log(run.folder)
        if log is not None:
            with log.open("a", encoding="utf-8") as file:
                file.write(f"{said}\n")
        to_parent.send(("failed", said.splitlines()[-1].removeprefix("error: ")))
        return
    if not run.trains:  # train.py writes that of a training
        args = train.build_parser().parse_args(list(run.argv))
        with atomic_write(run.folder / RECORD) as file:
            file.write(train.setup_cfg(args).dump().encode())
    write_facts(_facts(time.time() - started, commit), run.folder)


def _end_with_parent() -> None:
    """End this process when the one that asked for it does, however that came about."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _facts(seconds: float, commit: str) -> dict[str, Any]:
    used = resource.getrusage(resource.RUSAGE_SELF)
    unit = 1 if sys.platform == "darwin" else 1024
    on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
    return {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 2),
        "peak_memory_mb": round(used.ru_maxrss * unit / 2**20),
        "peak_gpu_memory_mb": round(torch.cuda.max_memory_allocated() / 2**20) if on_gpu else 0,
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "commit": commit,
        "anchoropt_plugin": VERSION,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.platform(),
    }

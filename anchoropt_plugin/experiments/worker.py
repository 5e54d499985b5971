"""One run in its own process, forked from a server that has imported everything.

Such a process has computed nothing before, so its numbers are those of ``python train.py``. It
starts in a fraction of a second; the imports alone would take seconds.
"""

from __future__ import annotations

import contextlib
import io
import os
import platform
import resource
import sys
import time
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from .facts import write_facts
from .fork_server import end_with_parent
from .logs import newest_log
from .plan import Run


def perform(
    run: Run, to_parent: Connection, environment: Mapping[str, str], code: Mapping[str, str]
) -> None:
    """Execute a run; its own files tell how far it is.

    Args:
        run: the run.
        to_parent: receives the reason, one line, if the run fails.
        environment: variables for this process, such as CUDA_VISIBLE_DEVICES.
        code: the versions of the code, for the facts of the run.
    """
    os.environ.update(environment)
    # The fork server may have been started before the variable was set.
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1").partition(",")[0]))
    end_with_parent()
    errors = io.StringIO()
    started = time.time()
    with (
        Path(os.devnull).open("w") as nowhere,  # log.txt has the same lines
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(errors),
    ):
        try:
            status = run.repository.run(run.argv, run.folder)
        except Exception:  # a bug: the other runs continue
            traceback.print_exc()
            status = 1
    if status:
        said = errors.getvalue().strip() or f"exit status {status}"
        log = newest_log(run.folder)
        if log is not None:
            with log.open("a", encoding="utf-8") as file:
                file.write(f"{said}\n")
        to_parent.send(said.splitlines()[-1].removeprefix("error: "))
        return
    write_facts({**_facts(time.time() - started), **code}, run.folder)


def _facts(seconds: float) -> dict[str, Any]:
    used = resource.getrusage(resource.RUSAGE_SELF)
    on_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
    return {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 2),
        "peak_memory_mb": round(peak_memory() / 2**20),
        "peak_gpu_memory_mb": round(torch.cuda.max_memory_allocated() / 2**20) if on_gpu else 0,
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.platform(),
    }


def peak_memory() -> int:
    """Return the largest resident set of this process so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

"""Run a function in several communicating processes, as under torchrun.

A server that has imported the test's modules forks the processes, so they start at once.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import traceback
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.process.test_distributed"])

DEADLINE = 300
"""Seconds after which the processes count as hanging."""


def together(n, function, folder, *args):
    """Call ``function(*args)`` in n processes, which write their results into ``folder``.

    Returns:
        The return values and the exit statuses of all processes.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cache = os.environ["ANCHOROPT_CACHE"]  # the server was started before it was set
    processes = [
        _CONTEXT.Process(target=_one, args=(rank, n, port, cache, function, str(folder), args))
        for rank in range(n)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(DEADLINE)
        if process.is_alive():
            process.kill()
            process.join()
    results = []
    for rank in range(n):
        path = folder / f"{rank}.pickle"
        results.append(pickle.loads(path.read_bytes()) if path.exists() else None)
    return results, [process.exitcode for process in processes]


def _one(rank, n, port, cache, function, folder, args):
    import torch

    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(n),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        ANCHOROPT_CACHE=cache,
    )
    try:
        result = function(*args)
    except Exception:
        traceback.print_exc()
        os._exit(1)
    Path(folder, f"{rank}.pickle").write_bytes(pickle.dumps(result))

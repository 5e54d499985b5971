"""All measurements on a GPU in one command, which needs no network.

    python benchmarks/gpu.py > output/gpu.md

It runs the tests that need a GPU. It compares the text branch and whole runs with the CPU. It runs
the benchmarks with 50 to 1,000 classes, with plain code under ``torch.compile`` as a further rival.
It counts launches and waits with PyTorch's profiler, and runs the loader. It prints Markdown tables
for docs/performance.md, and fails if a comparison fails. If time is up, it prints which parts are
skipped. ``--device cpu`` tries the command on a machine without a GPU.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from anchoropt_plugin.errors import UserError
from anchoropt_plugin.process.command_line import status_of
from benchmarks import gpu_equality, launch_steps, tables
from benchmarks.command import parser_of
from benchmarks.launch_steps import SIDES
from benchmarks.printing import markdown_table

SECONDS = 480
CLASSES = (50, 200, 500, 1_000)
DTYPES = ("fp32", "fp16", "bf16")
BENCHMARKS = ("text_branch", "train_step", "stage1", "evaluate")
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")

Part = Callable[[], str]
"""Returns Markdown."""


def parts(
    device: str, folder: Path, classes: Sequence[int], failures: list[str]
) -> dict[str, Part]:
    """Return the parts of the report, in order; a failed one adds a line to ``failures``."""
    found: dict[str, Part] = {
        "Tests": partial(output_of, ["-m", "pytest", "-q", "tests/gpu/test_cuda.py"], failures),
        "Text branch beside the CPU": partial(branch_equality, device, failures),
        "Whole runs beside the CPU": partial(equality, device, failures),
        "Launches and waits": partial(profiled, device),
        "Loader": partial(output_of, ["benchmarks/loader.py"], failures),
    }
    for dtype in DTYPES:
        found[f"Benchmarks, {dtype}"] = partial(
            benchmarks, device, dtype, folder / dtype, classes, failures
        )
    return found


def branch_equality(device: str, failures: list[str]) -> str:
    """Return a table of the fast text branch against the plain way on the CPU in fp32."""
    rows = []
    for precision, largest in gpu_equality.BRANCH_TOLERANCES.items():
        differences = gpu_equality.branch_difference(precision, device)
        if not max(differences) <= largest:
            failures.append(f"the text branch in {precision} differs by {max(differences):.1e}")
        rows.append([precision, *(f"{difference:.1e}" for difference in differences)])
    return markdown_table(["precision", "features", "gradients"], rows)


def equality(device: str, failures: list[str]) -> str:
    """Return a table of whole runs: their losses against those on the CPU in fp32."""
    rows = []
    for host, precision, difference in gpu_equality.differences(device):
        if not difference <= gpu_equality.TOLERANCES[precision]:
            failures.append(f"{host} in {precision} differs from the CPU by {difference:.1e}")
        rows.append([f"{host}_AnchorOPT", precision, f"{difference:.1e}"])
    return markdown_table(["host", "precision", "largest difference of a loss"], rows, 2)


def profiled(device: str) -> str:
    """Return a table of kernel launches and waits in the second of three steps, by the profiler."""
    rows = []
    steps = {"text branch": launch_steps.text_branch}
    steps |= {
        f"{host}_AnchorOPT, fp16": partial(launch_steps.run, f"{host}_AnchorOPT", "fp16")
        for host in launch_steps.HOSTS
    }
    for name, step in steps.items():
        for side in SIDES:
            calls = calls_of_the_second_step(partial(step, side, device))
            launches, waits = (sum(calls[name] for name in names) for names in (LAUNCHES, WAITS))
            rows.append([name, side, f"{launches:,}", str(waits)])
    return markdown_table(["a step", "side", "launches", "waits"], rows, 2)


def calls_of_the_second_step(run: Callable[[Callable[[], None]], None]) -> Counter[str]:
    """Return the number of calls of each function in the second step, with CUDA's functions."""
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    second = schedule(wait=1, warmup=1, active=1, repeat=1)
    with profile(activities=activities, schedule=second) as profiler:
        run(profiler.step)  # is called before, between and after the steps
    return Counter({event.key: event.count for event in profiler.key_averages()})


def benchmarks(
    device: str, dtype: str, folder: Path, classes: Sequence[int], failures: list[str]
) -> str:
    """Return the tables of all benchmarks in one precision."""
    flags = ["--device", device, "--dtype", dtype, "--seconds", "1"]
    for name in (*BENCHMARKS, "image_tower"):
        words = [f"benchmarks/{name}.py", *flags, "--json", str(folder / f"{name}.json")]
        if name in BENCHMARKS:
            words += ["--classes", *map(str, classes)]
        output_of(words, failures)
    return tables.markdown(tables.read([folder]))


def output_of(words: Sequence[str], failures: list[str]) -> str:
    """Run a command of the repository and return its output."""
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    done = subprocess.run(
        [sys.executable, *words],
        cwd=REPOSITORY,
        env={**os.environ, "ANCHOROPT_TEST_GPU": gpu},  # conftest.py hides the others
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        failures.append(f"{' '.join(words[:5])} ends with {done.returncode}: {' '.join(last)}")
    return done.stdout


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status: 1 if a comparison fails."""
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("--device", choices=("cuda", "cpu"), default="cuda", help="(default: cuda)")
    add("--classes", type=int, nargs="+", default=CLASSES, help="(default: 50 200 500 1000)")
    add("--seconds", type=float, default=SECONDS, help="then no new part starts (default: 480)")
    add("--folder", type=Path, default=REPOSITORY / "output" / "gpu", help="for the json results")
    return status_of(lambda: _report(parser.parse_args(arguments)), room="give another --folder")


def _report(args: argparse.Namespace) -> int:
    """Print all parts and return the exit status."""
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("PyTorch finds no GPU; to try the command without one, use --device cpu")
    begun = time.perf_counter()
    failures: list[str] = []
    for title, part in parts(args.device, args.folder, args.classes, failures).items():
        print(f"## {title}\n", flush=True)
        if time.perf_counter() - begun > args.seconds:
            print(f"Skipped: {args.seconds:.0f} s are over.\n")
            continue
        print(f"{part()}\n", flush=True)
    for failure in failures:
        print(f"FAULT {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

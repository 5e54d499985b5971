"""Everything that a GPU can tell, in one command of at most eight minutes, without a network.

    python benchmarks/gpu.py > output/gpu.md

Equality of features, gradients and whole runs with the CPU; the benchmarks at 50 to 1,000 classes
with time and memory; launches and waits as PyTorch's profiler sees them; the loader. It prints
tables in Markdown for docs/performance.md, and fails where something is not equal. What no time is
left for is named. ``--device cpu`` tries the command itself on a machine without a GPU.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from anchoropt_plugin.errors import UserError
from anchoropt_plugin.process.command_line import Parser, status_of
from benchmarks import gpu_equality, launch_steps, tables
from benchmarks.launch_steps import SIDES

SECONDS = 480
CLASSES = (50, 200, 500, 1_000)
DTYPES = ("fp32", "fp16", "bf16")
BENCHMARKS = ("text_branch", "train_step", "stage1", "evaluate")
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")

Part = Callable[[], Iterator[str]]
"""Gives lines of Markdown."""


class Failures(list[str]):
    """What was not equal."""


def parts(device: str, folder: Path, classes: Sequence[int], failures: Failures) -> dict[str, Part]:
    """The parts of the report, in order."""
    found: dict[str, Part] = {
        "Whole runs beside the CPU": partial(equality, device, failures),
        "Launches and waits": partial(profiled, device),
        "Loader": partial(output_of, ["benchmarks/loader.py"], failures),
    }
    for dtype in DTYPES:
        found[f"Benchmarks, {dtype}"] = partial(
            benchmarks, device, dtype, folder / dtype, classes, failures
        )
    return found


def equality(device: str, failures: Failures) -> Iterator[str]:
    """Losses of whole runs against the CPU's in fp32."""
    yield "| host | precision | largest difference of a loss |"
    yield "| --- | --- | ---: |"
    for host, precision, difference in gpu_equality.differences(device):
        if not difference <= gpu_equality.TOLERANCES[precision]:
            failures.append(f"{host} in {precision} differs from the CPU by {difference:.1e}")
        yield f"| {host}_AnchorOPT | {precision} | {difference:.1e} |"


def profiled(device: str) -> Iterator[str]:
    """Kernel launches and waits of the second of three steps, as the profiler sees them."""
    yield "| a step | side | launches | waits |"
    yield "| --- | --- | ---: | ---: |"
    steps = {"text branch": launch_steps.text_branch}
    steps |= {
        f"{host}_AnchorOPT, fp16": partial(launch_steps.training, host, "fp16")
        for host in launch_steps.NODES
    }
    for name, step in steps.items():
        for side in SIDES:
            calls = calls_of_the_second_step(partial(step, side, device))
            launches, waits = (sum(calls[name] for name in names) for names in (LAUNCHES, WAITS))
            yield f"| {name} | {side} | {launches:,} | {waits} |"


def calls_of_the_second_step(run: Callable[[Callable[[], None]], None]) -> Counter[str]:
    """How often each function was called, CUDA's own among them."""
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    profiler = profile(activities=activities)
    n_seen = 0

    def between() -> None:
        nonlocal n_seen
        if n_seen == 1:
            profiler.start()
        if n_seen == 2:
            profiler.stop()
        n_seen += 1

    run(between)
    return Counter({event.key: event.count for event in profiler.key_averages()})


def benchmarks(
    device: str, dtype: str, folder: Path, classes: Sequence[int], failures: Failures
) -> Iterator[str]:
    """The tables of all benchmarks in a precision."""
    how = ["--device", device, "--dtype", dtype, "--seconds", "1"]
    for name in (*BENCHMARKS, "image_tower"):
        words = [f"benchmarks/{name}.py", *how, "--json", str(folder / f"{name}.json")]
        if name in BENCHMARKS:
            words += ["--classes", *map(str, classes)]
        for _ in output_of(words, failures):
            pass
    yield tables.markdown(tables.read([folder]))


def output_of(words: Sequence[str], failures: Failures) -> Iterator[str]:
    """What a command of the repository prints."""
    done = subprocess.run(
        [sys.executable, *words], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        failures.append(f"{' '.join(words[:5])} ends with {done.returncode}: {' '.join(last)}")
    yield done.stdout


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status: 1 where something is not equal."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--device", choices=("cuda", "cpu"), default="cuda", help="(default: cuda)")
    add("--classes", type=int, nargs="+", default=CLASSES, help="(default: 50 200 500 1000)")
    add("--seconds", type=float, default=SECONDS, help="no part starts later (default: 480)")
    add("--folder", type=Path, default=REPOSITORY / "output" / "gpu", help="for results as json")

    def command() -> int:
        args = parser.parse_args(arguments)
        if args.device == "cuda" and not torch.cuda.is_available():
            raise UserError("PyTorch finds no GPU here; --device cpu tries the command without one")
        begun = time.perf_counter()
        failures = Failures()
        for title, part in parts(args.device, args.folder, args.classes, failures).items():
            print(f"## {title}\n", flush=True)
            if time.perf_counter() - begun > args.seconds:
                print(f"Skipped: {args.seconds:.0f} s are over.\n")
                continue
            for line in part():
                print(line, flush=True)
            print()
        for failure in failures:
            print(f"FAULT {failure}")
        return 1 if failures else 0

    return status_of(command, room="give another --folder")


if __name__ == "__main__":
    sys.exit(main())

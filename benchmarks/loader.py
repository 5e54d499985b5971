"""Images per second that a worker process loads, in Dassl's plain way and in ours.

JPEGs of 500 x 375 pixels go through the training transform of ViT-B/16: a random crop resized to
224 x 224, a random flip, normalisation. The plain way decodes every image in every epoch. Our way
caches decoded images, up to a bound in bytes, and finds normalised pixels in a table. Both draw the
same random numbers. The command fails if an image differs by a bit. Time is CPU time of one core.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torchvision.transforms as T
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import train
from anchoropt_plugin.dassl_compat.data.image_cache import BUDGET
from anchoropt_plugin.errors import UserError
from anchoropt_plugin.process.command_line import status_of
from benchmarks.command import ROOM, add_json, parser_of, prepare_json
from dassl.data import DatasetWrapper
from dassl.data.datasets import Datum
from dassl.data.transforms import build_transform
from dassl.data.transforms.transforms import interpolation_mode

WIDTH, HEIGHT, QUALITY = 500, 375, 90
GOAL = 270
"""Images per second that each of eight workers must load: a GPU takes 15 ms for 32 images."""
CONFIG = Path(train.__file__).parent / "configs" / "trainers" / "CoOp" / "vit_b16.yaml"

Load = Callable[[int], Tensor]
"""Takes the number of an image and returns the image (3, 224, 224)."""


class Speed(NamedTuple):
    """Images per second of a CPU core, in the first epoch and in the fastest later one."""

    name: str
    first: float
    later: float


def write_images(folder: Path, n_images: int) -> list[Path]:
    """Write JPEGs with soft shapes and noise; the files are about as large as photographs."""
    draw = np.random.default_rng(0)
    paths = []
    for number in range(n_images):
        coarse = Image.fromarray(draw.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.int16)
        noisy = smooth + draw.integers(-12, 13, smooth.shape, dtype=np.int16)
        paths.append(folder / f"{number}.jpg")
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(paths[-1], quality=QUALITY)
    return paths


def plain_way(cfg: Any, paths: Sequence[Path]) -> Load:
    """Return Dassl's way: PIL decodes, torchvision transforms."""
    settings, mode = cfg.INPUT, interpolation_mode(cfg)
    transform = T.Compose(
        [
            T.RandomResizedCrop(settings.SIZE, scale=settings.RRCROP_SCALE, interpolation=mode),
            T.RandomHorizontalFlip(),
            T.ToTensor(),
            T.Normalize(settings.PIXEL_MEAN, settings.PIXEL_STD),
        ]
    )

    return lambda number: transform(Image.open(paths[number]).convert("RGB"))


def our_way(cfg: Any, paths: Sequence[Path]) -> Load:
    """Return our way: the data set of a training loader."""
    with contextlib.redirect_stdout(io.StringIO()):
        transform = build_transform(cfg, is_train=True)
    data_set = DatasetWrapper(cfg, [Datum(str(path)) for path in paths], transform, is_train=True)
    return lambda number: data_set[number]["img"]


def measure(n_images: int, epochs: int, folder: Path) -> Iterator[Speed]:
    """Time both ways in turns, epoch by epoch.

    Raises:
        UserError: an image differs.
    """
    cfg = train.setup_cfg(train.build_parser().parse_args(["--config-file", str(CONFIG)]))
    paths = write_images(folder, n_images)
    ways = {"plain": plain_way(cfg, paths), "ours": our_way(cfg, paths)}
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for epoch in range(epochs):
        sums = []
        for name, load in ways.items():
            torch.manual_seed(epoch)
            begun = time.process_time()
            images = [load(number) for number in range(n_images)]
            speeds[name].append(n_images / (time.process_time() - begun))
            sums.append(images)
        if not all(map(torch.equal, *sums)):
            raise UserError(f"epoch {epoch + 1}: an image of ours differs from the plain way's")
    for name, by_epoch in speeds.items():
        yield Speed(name, by_epoch[0], max(by_epoch[1:]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("--images", type=int, default=64, help="number of images (default: 64)")
    add("--epochs", type=int, default=4, help="the first epoch decodes images (default: 4)")
    add_json(parser)
    return status_of(lambda: _report(parser.parse_args(arguments)), room=ROOM)


def _report(args: argparse.Namespace) -> None:
    """Measure both ways, print a table and store it."""
    if args.images < 1 or args.epochs < 2:
        raise UserError("--images must be at least 1, --epochs at least 2")
    prepare_json(args.json)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        speeds = list(measure(args.images, args.epochs, Path(folder)))
    print("| images a second and worker | first epoch | later |\n| --- | ---: | ---: |")
    for speed in speeds:
        print(f"| {speed.name} | {speed.first:,.0f} | {speed.later:,.0f} |")
    n_bytes = 3 * WIDTH * HEIGHT
    print(
        f"\nA GPU that takes 15 ms for 32 images needs {GOAL} from each of eight workers. "
        f"A decoded image takes {n_bytes / 1e6:.2f} MB. The images of a data set take at most "
        f"{BUDGET / 2**30:.0f} GiB: the first {BUDGET // n_bytes:,} are kept in memory. All others "
        "are decoded in every epoch."
    )
    if args.json:
        args.json.write_text(json.dumps([speed._asdict() for speed in speeds], indent=1))


if __name__ == "__main__":
    sys.exit(main())

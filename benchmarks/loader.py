"""Images a second that a worker process loads, in Dassl's plain way and in ours.

JPEGs of 500 x 375 pixels go through the training transform of ViT-B/16: a random crop resized to
224 x 224, a random flip, normalisation. The plain way decodes every image in every epoch. Ours
keeps decoded images, up to a bound in bytes, and looks pixels up in a table. Both draw the same
random numbers; the command fails where a batch differs by a bit. Time is that of a CPU core.
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
from anchoropt_plugin.process.command_line import Parser, status_of
from dassl.config import get_cfg_default
from dassl.data import DatasetWrapper
from dassl.data.datasets import Datum
from dassl.data.transforms import build_transform
from dassl.data.transforms.transforms import interpolation_mode

WIDTH, HEIGHT, QUALITY = 500, 375, 90
GOAL = 270
"""Images a second from each of eight workers: 32 images in 15 ms, a step on a GPU."""
CONFIG = Path(train.__file__).parent / "configs" / "trainers" / "CoOp" / "vit_b16.yaml"

Load = Callable[[int], Tensor]
"""Takes the number of an image, returns it as (3, 224, 224)."""


class Speed(NamedTuple):
    """Images a second of a CPU core, by epoch."""

    name: str
    first: float
    later: float


def write_images(folder: Path, n_images: int) -> list[Path]:
    """Write JPEGs with soft shapes and noise, about as large as photographs."""
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
    """Dassl's: PIL decodes, torchvision transforms."""
    given = cfg.INPUT
    mode = interpolation_mode(cfg)
    transform = T.Compose(
        [
            T.RandomResizedCrop(given.SIZE, scale=given.RRCROP_SCALE, interpolation=mode),
            T.RandomHorizontalFlip(),
            T.ToTensor(),
            T.Normalize(given.PIXEL_MEAN, given.PIXEL_STD),
        ]
    )

    def load(number: int) -> Tensor:
        image: Tensor = transform(Image.open(paths[number]).convert("RGB"))
        return image

    return load


def our_way(cfg: Any, paths: Sequence[Path]) -> Load:
    """The data set of a training loader."""
    with contextlib.redirect_stdout(io.StringIO()):
        transform = build_transform(cfg, is_train=True)
    data_set = DatasetWrapper(cfg, [Datum(str(path)) for path in paths], transform, is_train=True)
    return lambda number: data_set[number]["img"]


def measure(n_images: int, epochs: int, folder: Path) -> Iterator[Speed]:
    """Time both ways, epoch by epoch in turns.

    Raises:
        UserError: an image differs.
    """
    cfg = get_cfg_default()
    train.extend_cfg(cfg)
    cfg.merge_from_file(str(CONFIG))
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
    """The command line; returns the exit status."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--images", type=int, default=64, help="(default: 64)")
    add("--epochs", type=int, default=4, help="the first one decodes (default: 4)")
    add("--json", type=Path, metavar="FILE", help="store the results too")

    def command() -> int:
        args = parser.parse_args(arguments)
        if args.images < 1 or args.epochs < 2:
            raise UserError("--images wants whole numbers from 1 on, --epochs from 2 on")
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as folder:
            speeds = list(measure(args.images, args.epochs, Path(folder)))
        print("| images a second and worker | first epoch | later |\n| --- | ---: | ---: |")
        for speed in speeds:
            print(f"| {speed.name} | {speed.first:,.0f} | {speed.later:,.0f} |")
        bytes_each = 3 * WIDTH * HEIGHT
        print(
            f"\nA GPU that takes 15 ms for 32 images wants {GOAL} from each of eight workers. "
            f"Decoded images take {bytes_each / 1e6:.2f} MB each, of a set at most "
            f"{BUDGET / 2**30:.0f} GiB: the first {BUDGET // bytes_each:,} are kept, and the rest "
            "are decoded in every epoch."
        )
        if args.json:
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps([speed._asdict() for speed in speeds], indent=1))
        return 0

    return status_of(command, room="--json wants another file")


if __name__ == "__main__":
    sys.exit(main())

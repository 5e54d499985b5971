"""Find image files in a folder, and read them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..errors import UserError
from ..process.open_files import TOO_MANY, is_too_many

# Without EPS: PIL hands PostScript to a program that runs it. Older PILs have no AVIF.
_FORMATS = (
    *("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP", "JPEG2000"),
    *(("AVIF",) if find_spec("PIL.AvifImagePlugin") else ()),
)
_WHITE_OF_16_BITS = 65535
_LOWEST_WHITE = 1 << 14
"""An image of 16 bits without brighter pixels may hold 8, 10, 12 or 14 bits."""
_PHOTOMETRIC = 262
"""The TIFF tag that is 0 in a negative; PIL ignores it beyond 8 bits."""


class UprightPath(str):
    """The path of an image that :func:`read_image` turns as the camera was held."""

    __slots__ = ()


@cache
def image_suffixes() -> frozenset[str]:
    """Return the suffixes of the image formats that :func:`read_image` reads, in lower case.

    >>> sorted({".jfif", ".webp", ".eps"} & image_suffixes())
    ['.jfif', '.webp']
    """
    known = Image.registered_extensions().items()
    return frozenset(suffix for suffix, kind in known if kind in (*_FORMATS, "MPO"))


def is_image_name(name: str) -> bool:
    """Return whether a file name has the suffix of an image, and no dot at its beginning."""
    suffix = os.path.splitext(name)[1]  # noqa: PTH122  (ImageNet: a million Paths take seconds)
    return suffix.lower() in image_suffixes() and not name.startswith(".")


def files_in(folder: str | Path) -> tuple[list[str], list[str]]:
    """Return the images in a folder and its sub-folders, and the other files.

    Both are sorted paths relative to ``folder``. Hidden files and folders are in neither list. A
    symlink to a folder is an other file: it might lead out of the folder, or in a circle.

    Raises:
        OSError: a folder that cannot be read.
    """

    def fail(error: OSError) -> None:
        raise error

    images: list[str] = []
    others: list[str] = []
    for parent, folders, names in os.walk(folder, onerror=fail):
        linked = [name for name in folders if os.path.islink(f"{parent}/{name}")]  # noqa: PTH114
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in (*names, *linked):
            if not name.startswith("."):
                kind = images if is_image_name(name) and name not in linked else others
                kind.append(os.path.relpath(f"{parent}/{name}", folder).replace(os.sep, "/"))
    return sorted(images), sorted(others)


def read_image(path: str | Path, upright: bool = False) -> Image.Image:
    """Return the image at ``path`` in RGB, 8 bits a channel; of several frames the first.

    Args:
        path: the file; an :class:`UprightPath` sets ``upright``.
        upright: whether to turn the image as its EXIF orientation says. Public code does not.

    Raises:
        UserError: a missing, truncated or too large image, or one whose white level is unknown.
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            return to_rgb(image, upright or isinstance(path, UprightPath))
    except FileNotFoundError as error:
        raise UserError(f"the image {path} is missing; put it back, or correct the path") from error
    except Exception as error:  # PIL answers a broken file with a dozen different exceptions
        if is_too_many(error):
            raise UserError(TOO_MANY) from error
        said = str(getattr(error, "strerror", None) or error)  # str(error) repeats the path
        reason = " ".join(said.split()) or type(error).__name__
        raise UserError(f"cannot read the image {path}: {reason}") from error


def has_frames(path: str | Path) -> bool:
    """Return whether a file has several frames or pages, of which :func:`read_image` reads one.

    A photograph with a preview (MPO) has one.
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            return image.format != "MPO" and bool(getattr(image, "is_animated", False))
    except Exception:  # a second frame that is broken, in a dozen ways
        return False


def to_rgb(image: Image.Image, upright: bool = False) -> Image.Image:
    """Return ``image`` in RGB, 8 bits a channel; turned as its EXIF orientation says, if wanted.

    Raises:
        ValueError: an image whose white level is unknown.
    """
    has_16_bits = ";16" in str(getattr(image, "tile", ""))
    is_negative = getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0
    if image.mode == "F":
        raise ValueError("the white level of float pixels is unknown; save the image with 8 bits")
    if upright:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # PIL would clip values above 255
        values = np.asarray(image)
        if values.min() < 0 or values.max() > _WHITE_OF_16_BITS:
            raise ValueError("more than 16 bits a pixel; save the image with 8 or 16 bits")
        if is_negative:
            raise ValueError("16 bits with white as zero; save the image with 8 bits")
        _check_white(int(values.max()), 0)
        image = Image.fromarray((values / (_WHITE_OF_16_BITS / 255)).round().astype(np.uint8))
    rgb = image.convert("RGB")
    if has_16_bits and image.mode != "L":  # PIL has kept the upper 8 bits of each channel
        _check_white(int(np.asarray(rgb).max()) << 8, -1)
    return rgb


def _check_white(brightest: int, black: int) -> None:
    if black < brightest < _LOWEST_WHITE:
        raise ValueError(
            f"its brightest value is {brightest} of {_WHITE_OF_16_BITS}, so it may have fewer than "
            "16 bits, and its white level is unknown; save the image with 8 bits"
        )


class DamagedImages(UserError):
    """Images that cannot be read.

    Attributes:
        opened: the number of opened images.
        faults: one line for each image that cannot be read.
    """

    def __init__(self, opened: int, faults: list[str]) -> None:
        super().__init__(
            f"{len(faults)} of {opened} images cannot be read; mend or remove them: "
            + "; ".join(faults)
        )
        self.opened = opened
        self.faults = faults


def check_images(paths: Sequence[str | Path]) -> None:
    """Read all images.

    Raises:
        DamagedImages: some cannot be read; all of them are named.
    """

    def fault(path: str | Path) -> str:
        try:
            read_image(path)
        except UserError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor() as threads:  # PIL decodes outside the lock of the interpreter
        faults = list(filter(None, threads.map(fault, paths)))
    if faults:
        raise DamagedImages(len(paths), faults)

"""Images: every format, all bit depths, the EXIF orientation, and the files of a folder."""

from __future__ import annotations

import errno
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, features

from anchoropt_plugin import UserError
from anchoropt_plugin.files.images import (
    DamagedImages,
    UprightPath,
    check_images,
    files_in,
    has_frames,
    image_suffixes,
    read_image,
    to_rgb,
)

ORIENTATION = 274


@pytest.mark.parametrize("suffix", sorted(image_suffixes() - {".apng", ".avifs", ".pfm"}))
def test_every_suffix_of_an_image_is_read(tmp_path, suffix):
    path = tmp_path / f"a{suffix.upper()}"
    if suffix.startswith(".avif") and not features.check("avif"):
        pytest.skip("this PIL has no AVIF")
    mode = "1" if suffix == ".pbm" else "L" if suffix == ".pgm" else "RGB"
    Image.new(mode, (16, 12), 1 if mode == "1" else 255 if mode == "L" else (255,) * 3).save(path)
    image = read_image(path)
    assert (image.mode, image.size) == ("RGB", (16, 12))
    assert np.asarray(image).min() > 250


@pytest.mark.parametrize("suffix", [".gif", ".tif", ".webp", ".png", ".mpo"])
def test_files_of_several_frames(tmp_path, suffix):
    path, frames = tmp_path / f"a{suffix}", [Image.new("RGB", (8, 8), (x, 0, 0)) for x in (0, 255)]
    frames[0].save(path)
    assert not has_frames(path)
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert has_frames(path) == (suffix != ".mpo")
    assert np.asarray(read_image(path)).max() < 5
    path.write_bytes(path.read_bytes()[:20])
    assert not has_frames(path)


def test_formats_that_are_named_by_no_suffix():
    assert {".jpg", ".jfif", ".jpe", ".mpo", ".jp2", ".bmp", ".webp", ".tif"} < image_suffixes()
    assert not {".eps", ".ps", ".pdf", ".h5", ".txt", ""} & image_suffixes()


def test_the_files_of_a_folder(tmp_path):
    for name in ("b.JPG", "a.jfif", "c/d/e.png", "note.txt", "c/f.heic", ".g.png", ".h/i.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "circle.png").symlink_to(tmp_path)
    (tmp_path / "link.png").symlink_to(tmp_path / "b.JPG")
    images, others = files_in(tmp_path)
    assert images == ["a.jfif", "b.JPG", "c/d/e.png", "link.png"]
    assert others == ["c/f.heic", "circle.png", "note.txt"]


# ------------------------------------------------------------------ bit depth
def deep_png(values):
    """Return a PNG of 16 bits a channel, RGB, which PIL cannot write."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )  # fmt: skip

    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("kind", [np.uint16, np.int32])
@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_few_bits_in_a_wide_file_are_refused(tmp_path, kind, bits):
    values = np.array([[0, 1, 2**bits - 1]], dtype=kind)
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=f"brightest value is {2**bits - 1} of 65535"):
        read_image(tmp_path / "a.tif")
    with pytest.raises(ValueError, match="white level is unknown"):
        to_rgb(Image.fromarray(values))


@pytest.mark.parametrize("bits", [8, 12, 14])
def test_few_bits_in_deep_colours_are_refused(tmp_path, bits):
    (tmp_path / "a.png").write_bytes(deep_png(np.full((2, 2, 3), 2**bits - 1)))
    with pytest.raises(UserError, match="white level is unknown"):
        read_image(tmp_path / "a.png")


def test_deep_colours_and_a_black_image_are_read(tmp_path):
    values = np.array([[[0, 32768, 65535], [65535, 0, 256]]])
    (tmp_path / "a.png").write_bytes(deep_png(values))
    assert np.asarray(read_image(tmp_path / "a.png")).tolist() == (values // 256).tolist()
    Image.fromarray(np.zeros((2, 2), dtype=np.uint16)).save(tmp_path / "b.png")
    assert not np.asarray(read_image(tmp_path / "b.png")).any()
    (tmp_path / "c.pgm").write_bytes(b"P5 3 1 4095\n" + np.array([0, 2048, 4095], ">u2").tobytes())
    assert np.asarray(read_image(tmp_path / "c.pgm"))[0, :, 0].tolist() == [0, 128, 255]


def test_a_deep_negative_is_refused(tmp_path):
    values = np.array([[0, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.tif", tiffinfo={262: 0})
    with pytest.raises(UserError, match="white as zero"):
        read_image(tmp_path / "a.tif")


# ------------------------------------------------------------------ orientation
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize(("orientation", "turn"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_own_images_are_turned_as_the_camera_was_held(tmp_path, suffix, orientation, turn):
    pixels = np.zeros((16, 24, 3), dtype=np.uint8)
    pixels[:8, :8] = 255
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = str(tmp_path / f"a.{suffix}")
    Image.fromarray(pixels).save(path, exif=exif)

    def seen(image):
        return (np.asarray(image)[..., 0] > 128).tolist()

    flat, upright = (pixels[..., 0] > 128), (np.rot90(pixels, turn)[..., 0] > 128)
    assert seen(read_image(path)) == flat.tolist(), "public code does not turn images"
    for image in (read_image(path, upright=True), read_image(UprightPath(path))):
        assert seen(image) == upright.tolist()
        assert seen(to_rgb(image, upright=True)) == upright.tolist(), "turned once, not twice"


# ------------------------------------------------------------------ damaged images
def test_all_damaged_images_are_named(tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(9)]
    for path in paths:
        Image.effect_noise((40, 40), 50).save(path)
    check_images(paths)
    for path in paths[::4]:
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DamagedImages, match="3 of 9 images cannot be read") as error:
        check_images(paths)
    assert [str(path) in fault for path, fault in zip(paths[::4], error.value.faults, strict=True)]
    assert all(str(path) in str(error.value) for path in paths[::4])


def test_an_image_without_permission_is_not_called_damaged(tmp_path, monkeypatch):
    def refuse(path, **_):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(DamagedImages) as error:
        check_images([tmp_path / "a.png"])
    says = f"mend or remove them: cannot read the image {tmp_path}/a.png: Permission denied"
    assert str(error.value) == f"1 of 1 images cannot be read; {says}"


def test_an_image_is_not_blamed_for_too_many_open_files(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")

    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(UserError, match="too many open files: raise the limit") as error:
        check_images([tmp_path / "a.png"])
    assert "a.png" not in str(error.value)

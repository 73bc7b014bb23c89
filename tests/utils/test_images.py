"""Pictures of every kind are read upright in RGB, or refused by name."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from utils.errors import DataError, UnreadableImageError
from utils.images import MAX_PIXELS, list_pictures, read_picture, read_rgb, read_size

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def test_rgb_png_is_read_as_it_is(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(PIXELS))
    for read in (read_rgb, read_picture):
        found = read(path)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, PIXELS)
    assert read_size(path) == (20, 30)


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: np.rot90(a, 2).transpose(1, 0, 2)),
        (8, lambda a: np.rot90(a, 1)),
    ],
)
def test_exif_orientation_counts_for_users_pictures_only(
    tmp_path: Path, orientation: int, upright: Callable[[np.ndarray], np.ndarray]
) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    path = save(tmp_path / "a.png", Image.fromarray(PIXELS), exif=exif)
    np.testing.assert_array_equal(read_picture(path), upright(PIXELS))
    np.testing.assert_array_equal(read_rgb(path), PIXELS)


def test_grey_black_and_white_and_palette(tmp_path: Path) -> None:
    grey = PIXELS[:, :, 0]
    found = read_picture(save(tmp_path / "g.png", Image.fromarray(grey)))
    np.testing.assert_array_equal(found, np.repeat(grey[:, :, None], 3, 2))
    bits = grey > 99
    found = read_picture(save(tmp_path / "b.png", Image.fromarray(bits)))
    np.testing.assert_array_equal(found[:, :, 1], bits * 255)
    image = Image.fromarray(PIXELS).quantize(16)
    np.testing.assert_array_equal(read_picture(save(tmp_path / "p.png", image)), np.asarray(image.convert("RGB")))


def test_cmyk_jpeg(tmp_path: Path) -> None:
    flat = Image.new("RGB", (32, 24), (200, 40, 90)).convert("CMYK")
    found = read_picture(save(tmp_path / "c.jpg", flat, quality=95))
    assert found.shape == (24, 32, 3)
    assert np.abs(found.astype(int) - (200, 40, 90)).max() <= 4


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bit_grey_keeps_its_range(tmp_path: Path, name: str) -> None:
    grey = PIXELS[:, :, 0]
    found = read_picture(save(tmp_path / name, Image.fromarray(grey.astype(np.uint16) * 257)))
    np.testing.assert_array_equal(found, np.repeat(grey[:, :, None], 3, 2))


def test_thirty_two_bit_and_floating_point_tiff(tmp_path: Path) -> None:
    grey = PIXELS[:, :, 0]
    for name, values in {
        "int.tif": grey.astype(np.int32) * 257,
        "small_int.tif": grey.astype(np.int32),
        "unit.tif": (grey / 255).astype(np.float32),
        "bytes.tif": grey.astype(np.float32),
    }.items():
        found = read_picture(save(tmp_path / name, Image.fromarray(values)))
        np.testing.assert_array_equal(found[:, :, 2], grey, err_msg=name)


def test_transparent_parts_become_white(tmp_path: Path) -> None:
    alpha = np.zeros((20, 30), np.uint8)
    alpha[:, :15] = 255
    found = read_picture(save(tmp_path / "a.png", Image.fromarray(np.dstack([PIXELS, alpha]))))
    np.testing.assert_array_equal(found[:, :15], PIXELS[:, :15])
    assert (found[:, 15:] == 255).all()
    found = read_picture(save(tmp_path / "la.png", Image.fromarray(np.dstack([PIXELS[:, :, 0], alpha]))))
    assert (found[:, 15:] == 255).all()
    image = Image.fromarray((PIXELS[:, :, 0] > 99).astype(np.uint8), mode="P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    found = read_picture(save(tmp_path / "p.png", image, transparency=0))
    assert {tuple(pixel) for pixel in found.reshape(-1, 3)} == {(255, 255, 255), (40, 50, 60)}


def test_one_pixel(tmp_path: Path) -> None:
    assert read_picture(save(tmp_path / "a.png", Image.fromarray(PIXELS[:1, :1]))).shape == (1, 1, 3)


def test_twelve_thousand_by_nine_thousand_is_read(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", Image.new("L", (12_000, 9_000)))
    assert read_size(path) == (9_000, 12_000)
    assert read_picture(path).shape == (9_000, 12_000, 3)


@pytest.mark.parametrize("side", [13_342, 14_000])
def test_too_large_pictures_are_refused_before_they_are_decoded(tmp_path: Path, side: int) -> None:
    assert side * side > MAX_PIXELS
    data = bytearray(save(tmp_path / "huge.png", Image.new("L", (1, 1))).read_bytes())
    data[16:24] = struct.pack(">II", side, side)  # width and height in the header, then its checksum
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path = tmp_path / "huge.png"
    path.write_bytes(data)
    for read in (read_rgb, read_picture, read_size):
        with pytest.raises(UnreadableImageError, match=r"huge\.png: too large \(.*at most 178 million pixels are read"):
            read(path)


def jpeg_bytes() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (200, 300, 3), dtype=np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize("read", [read_rgb, read_picture])
@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("cut.jpg", jpeg_bytes()[:9000], "cut.jpg: the picture is cut off or damaged (image file is truncated"),
        ("text.jpg", b"hello", "text.jpg: not a picture (5 bytes in no known picture format)"),
        ("empty.png", b"", "empty.png: not a picture (the file is empty)"),
        ("broken.png", b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "broken.png: "),
    ],
)
def test_bad_pictures_are_refused_by_name(
    tmp_path: Path, read: Callable[[Path], np.ndarray], name: str, data: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UnreadableImageError) as caught:
        read(tmp_path / name)
    assert message in str(caught.value)


def test_missing_pictures_and_folders_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImageError, match=r"none\.jpg: no such picture"):
        read_picture(tmp_path / "none.jpg")
    with pytest.raises(UnreadableImageError, match="cannot be read as a picture"):
        read_picture(tmp_path)


def test_pictures_are_listed_in_natural_order_from_folders_files_and_patterns(tmp_path: Path) -> None:
    for name in ("b10.jpg", "b2.JPG", "sub/deep/a.png", "notes.txt", ".hidden.jpg", "c.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    names = [str(path.relative_to(tmp_path)) for path in list_pictures([tmp_path])]
    assert names == ["b2.JPG", "b10.jpg", "c.webp", "sub/deep/a.png"]
    assert [path.name for path in list_pictures([f"{tmp_path}/b*.jpg"])] == ["b10.jpg"]
    assert len(list_pictures([tmp_path / "c.webp", tmp_path])) == 4
    assert [path.name for path in list_pictures([tmp_path / "notes.txt"])] == ["notes.txt"]


def test_nothing_to_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no pictures found in .*Expected files ending in \.bmp"):
        list_pictures([tmp_path])
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        list_pictures([tmp_path / "nowhere"])
    with pytest.raises(DataError, match="no pictures found in"):
        list_pictures([f"{tmp_path}/*.jpg"])

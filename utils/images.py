"""Reading pictures: benchmark images exactly as published, and users' own pictures with every oddity handled.

Both readers return RGB uint8 arrays of shape (H, W, 3).
"""

from __future__ import annotations

import glob
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from utils.errors import DataError, UnreadableImageError

MAX_PIXELS = 178_000_000  # Pillow itself refuses a little above this
PICTURE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".gif"}
)
_SIXTEEN_BIT = ("I", "I;16", "I;16B", "I;16L", "I;16N")
# What Pillow raises for pictures that are cut off, damaged or not pictures at all.
_BAD_PICTURE = (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, OverflowError, MemoryError)


def read_rgb(path: str | Path) -> NDArray[np.uint8]:
    """Read a benchmark or index image the way the published systems do: open and convert to RGB, nothing else.

    Args:
        path: image file. EXIF orientation is ignored, and alpha is dropped.

    Returns:
        RGB pixels, shape (H, W, 3), uint8.

    Raises:
        UnreadableImageError: if the file is missing, cut off, damaged, not a picture or larger than `MAX_PIXELS`.
    """
    path = Path(path)
    with _open(path) as image:
        return _decode(path, lambda: np.array(image.convert("RGB")))


def read_picture(path: str | Path) -> NDArray[np.uint8]:
    """Read a user's own picture upright and in RGB, whatever its format.

    Args:
        path: image file. EXIF orientation is applied; grey, palette, CMYK, 16-bit and floating-point pictures are
            converted; transparent parts become white.

    Returns:
        RGB pixels, shape (H, W, 3), uint8.

    Raises:
        UnreadableImageError: if the file is missing, cut off, damaged, not a picture or larger than `MAX_PIXELS`.
    """
    path = Path(path)
    with _open(path) as image:
        return _decode(path, lambda: _to_rgb(ImageOps.exif_transpose(image)))


def read_size(path: str | Path) -> tuple[int, int]:
    """Height and width of an image as stored (no EXIF rotation), read from its header only.

    Raises:
        UnreadableImageError: as `read_rgb`, as far as the header shows it.
    """
    with _open(Path(path)) as image:
        return image.height, image.width


def _open(path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # we have our own, higher limit
            image = Image.open(path)
    except FileNotFoundError as error:
        raise UnreadableImageError(f"{path}: no such picture. Check the path.") from error
    except Image.DecompressionBombError as error:
        raise UnreadableImageError(_too_large(path, "")) from error
    except UnidentifiedImageError as error:
        raise UnreadableImageError(_not_a_picture(path)) from error
    except _BAD_PICTURE as error:
        raise UnreadableImageError(f"{path}: cannot be read as a picture ({error}).") from error
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.height}x{image.width} pixels; "
        image.close()
        raise UnreadableImageError(_too_large(path, size))
    return image


def _too_large(path: Path, size: str) -> str:
    return f"{path}: too large ({size}at most {MAX_PIXELS // 1_000_000} million pixels are read). Make it smaller."


def _not_a_picture(path: Path) -> str:
    try:
        size = path.stat().st_size
    except OSError:
        size = 0
    what = "the file is empty" if size == 0 else f"{size} bytes in no known picture format"
    return f"{path}: not a picture ({what})."


def _decode(path: Path, load: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged EXIF and the like: the pixels decide
            return load()
    except _BAD_PICTURE as error:
        raise UnreadableImageError(
            f"{path}: the picture is cut off or damaged ({error}). Replace it, or take it out of the folder."
        ) from error


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode in _SIXTEEN_BIT or image.mode == "F":
        grey = _to_eight_bits(image)
        return np.repeat(grey[:, :, None], 3, axis=2)  # (H, W) -> (H, W, 3)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"))


def _to_eight_bits(image: Image.Image) -> NDArray[np.uint8]:
    """Grey values of a 16-bit, 32-bit or floating-point picture, shape (H, W), uint8.

    Integer pictures use the full 16-bit range when they leave 0..255. Floating-point ones are 0..1 or 0..255 by their
    largest value.
    """
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    largest = values.max(initial=0.0)
    if image.mode == "F":
        scale = 255.0 if largest <= 1.0 else 1.0
    else:
        scale = 1.0 / 257.0 if largest > 255.0 or image.mode != "I" else 1.0
    return np.clip(np.rint(values * scale), 0, 255).astype(np.uint8)


def shrink_to(picture: NDArray[np.uint8], long_edge: int | None) -> NDArray[np.uint8]:
    """A picture (H, W, 3) with its longer side at most `long_edge` (None: as it is), by Pillow's bilinear filter."""
    height, width = picture.shape[:2]
    if long_edge is None or max(height, width) <= long_edge:
        return picture
    scale = long_edge / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.array(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))


def natural_key(path: str | Path) -> list[tuple[int, int, str]]:
    """Sorting key that puts `image2` before `image10`."""
    parts = re.split(r"(\d+)", str(path))
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part.lower()) for part in parts]


def is_picture(path: str | Path) -> bool:
    """Whether a file name has a picture's ending and is not hidden."""
    path = Path(path)
    return path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".")


def list_pictures(paths: Sequence[str | Path]) -> list[Path]:
    """All pictures behind folders (searched to any depth), files and glob patterns.

    Args:
        paths: folders, files or patterns such as `photos/*.jpg`.

    Returns:
        Paths in natural order (`image2` before `image10`), each once.

    Raises:
        DataError: if a path does not exist, or if there is no picture at all.
    """
    found: list[Path] = []
    for given in map(str, paths):
        found.extend(_expand(given))
    if not found:
        names = ", ".join(map(str, paths)) or "(nothing)"
        endings = ", ".join(sorted(PICTURE_SUFFIXES))
        raise DataError(f"no pictures found in {names}. Expected files ending in {endings}.")
    return sorted(dict.fromkeys(found), key=natural_key)


def _expand(given: str) -> list[Path]:
    path = Path(given).expanduser()
    if path.is_dir():
        return [entry for entry in path.rglob("*") if is_picture(entry) and entry.is_file()]
    if path.is_file():
        return [path]
    if glob.has_magic(given):
        return [Path(entry) for entry in glob.glob(str(path), recursive=True) if is_picture(entry)]
    raise DataError(f"{given}: no such file or folder. Check the path.")

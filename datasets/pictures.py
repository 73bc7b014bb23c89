"""Fast reading of index pictures: the pixels of `utils.images.read_rgb` in about half its time for common JPEGs.

Anything but a complete grey or RGB JPEG goes to `read_rgb`, which also words the errors.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from utils.errors import UnreadableImageError
from utils.images import MAX_PIXELS, read_rgb, read_size

_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BARE_MARKERS = frozenset({0x01, *range(0xD0, 0xD9)})
_BASELINE_MARKERS = frozenset({0xC0, 0xC1, 0xC2})
_REDUCED = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}


def read_index_image(path: Path, *, shrink: int = 1) -> np.ndarray:
    """Read a picture of an index dataset.

    Args:
        path: image file; EXIF orientation is ignored.
        shrink: 2, 4 or 8 decode a JPEG at that fraction of its size. Faster, but other pixels than reading it whole
            and scaling down afterwards.

    Returns:
        RGB, uint8, (H, W, 3).

    Raises:
        UnreadableImageError: names the file.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UnreadableImageError(f"{path}: cannot be read ({error.strerror}). Check the retrieval file.") from error
    frame = _jpeg_frame(data)
    if frame is None or frame[0] * frame[1] > MAX_PIXELS:
        return read_rgb(path)
    flags = _REDUCED.get(shrink, cv2.IMREAD_COLOR) | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if image is None:
        return read_rgb(path)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)


def read_image_size(path: Path) -> tuple[int, int]:
    """(height, width) from the header, EXIF orientation ignored; raises UnreadableImageError."""
    return read_size(path)


def _jpeg_frame(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a complete 8-bit grey or three-component JPEG, None for anything else."""
    if data[:2] != b"\xff\xd8" or b"\xff\xd9" not in data[-16:]:
        return None
    position = 2
    while position + 9 < len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:
            position += 1
        elif marker in _BARE_MARKERS:
            position += 2
        elif marker in _FRAME_MARKERS:
            header = data[position + 4 : position + 10]
            if marker not in _BASELINE_MARKERS or header[0] != 8 or header[5] not in (1, 3):
                return None
            return int.from_bytes(header[1:3], "big"), int.from_bytes(header[3:5], "big")
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return None

"""What this machine can do at best, measured in the same run: matrix products, copies, JPEG decoding.

Every limit is measured once per setting and kept, the best of several repetitions.
"""

from __future__ import annotations

import functools
import io
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

REPEATS = 5


class Limits:
    """Measured limits of one device.

    Args:
        device: where matrix products and copies are measured; JPEG decoding is always on one CPU core.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.matmul_seconds = functools.lru_cache(self._matmul_seconds)
        self.copy_rate = functools.lru_cache(self._copy_rate)
        self.jpeg_seconds = functools.lru_cache(self._jpeg_seconds)

    def _matmul_seconds(self, m: int, k: int, n: int, dtype: torch.dtype = torch.float32, batch: int = 1) -> float:
        """Seconds of one (m, k) x (k, n) matrix product, `batch` of them at once."""
        generator = torch.Generator().manual_seed(0)
        shape = (batch,) if batch > 1 else ()
        left = torch.randn(*shape, m, k, generator=generator).to(self.device, dtype)
        right = torch.randn(*shape, k, n, generator=generator).to(self.device, dtype)
        out = torch.empty(*shape, m, n, device=self.device, dtype=dtype)
        return self._best(lambda: torch.matmul(left, right, out=out))

    def matmul_rate(self, m: int, k: int, n: int, dtype: torch.dtype = torch.float32, batch: int = 1) -> float:
        """Floating-point operations per second (2·m·k·n per product) at this shape."""
        return 2.0 * m * k * n * batch / self.matmul_seconds(m, k, n, dtype, batch)

    def _copy_rate(self, size_bytes: int = 256 * 1024 * 1024) -> float:
        """Bytes copied per second inside the device's memory (each byte read once and written once)."""
        source = torch.ones(size_bytes, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        return size_bytes / self._best(lambda: target.copy_(source))

    def copy_seconds(self, size_bytes: int) -> float:
        """Seconds to copy this many bytes at the measured rate."""
        return size_bytes / self.copy_rate()

    def _jpeg_seconds(self, height: int, width: int, quality: int = 90) -> float:
        """Seconds to decode one JPEG of this size to RGB with Pillow on one core."""
        generator = np.random.default_rng(0)
        small = generator.integers(0, 256, (max(2, height // 16), max(2, width // 16), 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
        noisy = np.clip(smooth + generator.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8)  # as natural pictures
        buffer = io.BytesIO()
        Image.fromarray(noisy).save(buffer, "JPEG", quality=quality)
        data = buffer.getvalue()
        return self._best(lambda: np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))

    def _best(self, function: Callable[[], object]) -> float:
        function()
        best = float("inf")
        for _ in range(REPEATS):
            self._wait()
            start = time.perf_counter()
            function()
            self._wait()
            best = min(best, time.perf_counter() - start)
        return best

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

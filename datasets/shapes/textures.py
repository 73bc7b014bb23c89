"""Surface patterns of the shapes world: scalar fields in [0, 1] over a thing's own coordinates."""

from __future__ import annotations

import cv2
import numpy as np

TEXTURE_NAMES = ("plain", "stripes", "bands", "dots", "checks", "waves", "rings", "scales", "bricks", "hatch", "grain")


def _edge(field: np.ndarray, sharpness: float = 2.5) -> np.ndarray:
    return np.clip(field * sharpness * 0.5 + 0.5, 0.0, 1.0)


def paint_texture(name: str, u: np.ndarray, v: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Evaluate a pattern at a thing's own coordinates.

    Args:
        name: one of ``TEXTURE_NAMES``.
        u: horizontal coordinate, about [-1, 1], float32 (H, W).
        v: vertical coordinate, the same shape.
        rng: draws frequency and phase.

    Returns:
        Share of the pattern's second tone, float32 (H, W), in [0, 1].

    Raises:
        ValueError: if the name is unknown.
    """
    frequency = np.float32(rng.uniform(7.0, 11.0))
    shift_u, shift_v = rng.uniform(0, 2 * np.pi, 2).astype(np.float32)
    if name == "plain":
        return np.zeros_like(u)
    if name == "grain":
        noise = rng.random((14, 14), dtype=np.float32)
        return _edge(
            cv2.remap(noise, u * 6 + 6.5, v * 6 + 6.5, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT) - 0.5, 6
        )
    a, b = u * frequency + shift_u, v * frequency + shift_v
    if name == "stripes":
        return _edge(np.sin(a * 1.3))
    if name == "bands":
        return _edge(np.sin(b))
    if name == "dots":
        return _edge(np.cos(a) * np.cos(b) - 0.35, 5)
    if name == "checks":
        return _edge(np.sin(a * 0.9) * np.sin(b * 0.9), 6)
    if name == "waves":
        return _edge(np.sin(b * 1.1 + 1.6 * np.sin(a * 0.8)))
    if name == "rings":
        return _edge(np.sin(np.sqrt(u * u + v * v) * frequency * 1.4 + shift_u))
    if name == "scales":
        return _edge(np.sin(a * 1.2 + np.pi * (np.sin(b * 1.2) > 0)) * np.abs(np.sin(b * 1.2)), 4)
    if name == "bricks":
        row = np.sin(b * 1.1)
        joint = np.abs(np.sin(a * 0.6 + 0.5 * np.pi * (row > 0)))
        return 1 - np.clip(5 * np.minimum(np.abs(row), joint), 0, 1)
    if name == "hatch":
        return _edge(np.maximum(np.sin(a + b), np.sin(a - b)) - 0.6, 5)
    raise ValueError(f"unknown texture {name!r}: choose one of {', '.join(TEXTURE_NAMES)}")

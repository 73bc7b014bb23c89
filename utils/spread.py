"""Some of many, evenly spread: pictures that are shown or looked at for all of them."""

from __future__ import annotations

import numpy as np


def spread_rows(total: int, number: int) -> list[int]:
    """Ascending rows below `total`, evenly spread from the first to the last; all of them if there are no more."""
    return np.unique(np.linspace(0, total - 1, min(number, total)).astype(np.int64)).tolist()
